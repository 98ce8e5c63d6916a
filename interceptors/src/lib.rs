//! One tower layer a file: what happens to every call.
