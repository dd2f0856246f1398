//! The password prompt, on a pseudo-terminal.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};
use support::Place;

/// Longest that a test waits for anything.
const DEADLINE: Duration = Duration::from_secs(30);

/// The program on a terminal of its own.
struct Terminal {
    screen: File,
    /// Keeps the terminal's other end, so that its settings can be asked after the program ended.
    line: OwnedFd,
    child: Child,
    shown: String,
}

impl Terminal {
    fn start(place: &Place, args: &[&str]) -> Self {
        let pty = openpty(None, None).unwrap();
        let program = place.command(args);
        // Gives the program a session whose terminal is its standard input.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(program.get_program()).args(program.get_args());
        command.current_dir(place.path()).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Self { screen: File::from(pty.master), line: pty.slave, child, shown: String::new() }
    }

    /// Waits until the text was shown.
    fn expect(&mut self, text: &str) {
        let end = Instant::now() + DEADLINE;
        while !self.shown.contains(text) {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{text:?} was not shown, only {:?}", self.shown);
            let mut ready = [PollFd::new(self.screen.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::try_from(left).unwrap()).unwrap() == 0 {
                continue;
            }
            let mut buffer = [0; 1024];
            let count = self.screen.read(&mut buffer).unwrap();
            self.shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        let at = self.shown.find(text).unwrap();
        self.shown.drain(..at + text.len());
    }

    fn press(&mut self, keys: &[u8]) {
        self.screen.write_all(keys).unwrap();
    }

    fn echoes(&self) -> bool {
        let flags = tcgetattr(&self.line).unwrap().local_flags;
        flags.contains(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG)
    }

    fn end(mut self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(self.echoes(), "the terminal was left without echo");
                return status;
            }
            assert!(Instant::now() < end, "the program did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

const ADD: [&str; 5] = ["user", "add", "ann@localhost", "--set", "sasl.iterations=4096"];

#[test]
fn a_password_is_asked_twice_and_not_shown() {
    let place = Place::new();
    let mut terminal = Terminal::start(&place, &ADD);
    terminal.expect("New password for ann@localhost: ");
    assert!(!terminal.echoes());
    terminal.press(b"first\r");
    terminal.expect("\r\nThe same again: ");
    terminal.press(b"other\r");
    terminal.expect("\r\nThey differ.\r\nNew password for ann@localhost: ");
    // Corrected with backspace (over two bytes) and ^U.
    terminal.press("wrong\u{15}secr\u{fc}\u{7f}et\r".as_bytes());
    terminal.expect("\r\nThe same again: ");
    terminal.press(b"secret\n");
    terminal.expect("\r\nadded ann@localhost\r\n");
    assert_eq!(terminal.end().code(), Some(0));
    // It is the password that was typed: it can be set again from standard input, and the
    // account is there.
    assert_eq!(place.run(&["user", "list"]).ok(), "ann@localhost\n");
}

#[test]
fn interrupting_sets_the_terminal_back() {
    for key in [&b"\x03"[..], b"\x1c", b"\x04"] {
        let place = Place::new();
        let mut terminal = Terminal::start(&place, &ADD);
        terminal.expect("New password for ann@localhost: ");
        terminal.press(key);
        terminal.expect("waystation: interrupted");
        assert_eq!(terminal.end().code(), Some(130));
        assert!(!place.file("data").exists());
    }
}

#[test]
fn three_tries_are_enough() {
    let place = Place::new();
    let mut terminal = Terminal::start(&place, &ADD);
    for _ in 0..3 {
        terminal.expect("New password for ann@localhost: ");
        terminal.press(b"\r");
        terminal.expect("The password is empty.");
    }
    terminal.expect("waystation: no password was given");
    assert_eq!(terminal.end().code(), Some(1));
}

#[test]
fn without_a_terminal_the_option_is_named() {
    let place = Place::new();
    let mut command = Command::new("setsid");
    let program = place.command(&ADD);
    command.arg("--wait").arg(program.get_program()).args(program.get_args()).current_dir(place.path());
    let error = support::finish(command, "").fails(1);
    assert!(error.contains("there is no terminal to ask for the password"), "{error}");
    assert!(error.contains("use --password-stdin"), "{error}");
}
