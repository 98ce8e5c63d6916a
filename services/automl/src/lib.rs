//! Studies and trials: ask, report, tell, optimize.
