//! Where passwords come from: private files, and terminals that do not echo them.

use crate::{
    home::{Desk, Home},
    terminal::Terminal,
};
use std::{fs, os::unix::fs::PermissionsExt};

#[test]
fn a_password_file_that_others_can_read_is_refused() {
    let home = Home::new();
    let mesh = home.up("a");
    let old = home.dir(".config/tars/session.json");
    fs::create_dir_all(old.parent().unwrap()).unwrap();
    fs::write(&old, "{}").unwrap();
    let said = home.refused(&["users", "list", "--gateway", &mesh.ready.gateway]);
    assert!(said.contains("earlier version"), "{said}");
    let password = fs::read_to_string(&mesh.ready.admin_password_file).unwrap();
    let file = home.dir("password");
    fs::write(&file, format!("{password}\r\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let args = [
        "login",
        "--gateway",
        &mesh.ready.gateway,
        "--username",
        "admin",
        "--password-file",
        "password",
    ];
    let said = home.refused(&args);
    assert!(said.contains("is readable by everybody"), "{said}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    home.good(&args);
    assert!(!old.exists(), "a login removes it");
}

#[test]
fn a_typed_password_is_not_echoed_and_the_terminal_is_restored() {
    let desk = Desk::new();
    let create = ["users", "create", "ada", "--role", "viewer"];
    let login = ["login", "--username", "ada"];
    let secret = "a long enough secret";
    for (args, answers, code) in [
        (&create[..], &[("new password: ", "\x03")][..], 130),
        (
            &create[..],
            &[
                ("new password: ", "a long enough secret\r"),
                ("once more: ", "a long enough other\r"),
            ],
            1,
        ),
        (
            &create[..],
            &[
                ("new password: ", "a long enough secret\r"),
                ("once more: ", "a long enough secret\r"),
            ],
            0,
        ),
        (&login[..], &[("password: ", "a long enough secret\r")], 0),
    ] {
        let mut terminal = Terminal::new();
        assert!(terminal.echoes());
        let mut command = terminal.start(desk.tars(args));
        let mut shown = String::new();
        for (prompt, typed) in answers {
            shown += &terminal.shows(prompt);
            assert!(!terminal.echoes(), "{prompt}");
            terminal.types(typed);
        }
        assert_eq!(command.exit_code(), Some(code), "{args:?}: {shown}");
        assert!(terminal.echoes(), "restored");
        terminal.types("over\n");
        shown += &terminal.shows("over");
        assert!(!shown.contains(secret), "{shown}");
    }
}
