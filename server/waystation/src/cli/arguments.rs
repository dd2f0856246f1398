//! What may be written on the command line, with its help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::admin::Condition;

const EXAMPLES: &str = "\
Examples:
  waystation                                     serve localhost with the embedded defaults;
                                                 the chat page is http://localhost:5280/
  waystation user add ann@localhost              make an account; asks for its password
  waystation --config /etc/waystation.toml       serve with a configuration file
  waystation --set 'listen.c2s=[\"0.0.0.0:5222\"]'  override a key; VALUE is TOML
  waystation config check --config my.toml       say what is wrong with a file
  waystation session list                        who is connected
  waystation federation list                     what waits for other domains
  waystation crashtest                           see for yourself that nothing is lost

The queue and archive commands need the data folder for themselves: stop the server first.
crashtest uses neither a server nor a folder of yours, and has exit codes of its own.
The other commands but serve work beside a running server, by the socket in its data folder, and
on the data folder itself when no server runs. All find the folder as the server does: give them
the same --config, --set or --data-dir.

Exit codes:
  0  done
  1  it could not be done: no such account, a wrong file, a broken disk ...
  2  the command line is wrong
  3  the configuration has mistakes; all of them are shown
  4  the server or its data folder cannot be reached
  130  interrupted at a password prompt";

const CRASHTEST: &str = "\
Starts this program as a server of its own, on a free port of 127.0.0.1 and a temporary folder,
lets clients send numbered messages to each other, and kills it with SIGKILL at random moments.
After each kill the clients resume and send again only what the server says it does not have.
No other server and no other folder is touched; configuration files are not read.

A message is lost when the server acknowledged it and it was never delivered. With
--durability memory there must be losses: that shows that this command can see them.

Examples:
  waystation crashtest
  waystation crashtest --cycles 100 --clients 10 --rate 500 --json

Exit codes:
  0  nothing was lost
  1  acknowledged messages were lost
  2  it could not be run, or nothing was acknowledged: then nothing was shown";

/// An XMPP server that acknowledges a message only once it is stored.
#[derive(Debug, Parser)]
#[command(name = "waystation", version, after_help = EXAMPLES, max_term_width = 100)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) settings: Settings,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

/// Options that every command has, before or behind its name.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Configuration")]
pub(super) struct Settings {
    /// The configuration file; without one the embedded defaults hold
    #[arg(long, value_name = "FILE", env = "WAYSTATION_CONFIG", hide_env_values = true)]
    pub(super) config: Option<PathBuf>,
    /// Overrides a key; VALUE is TOML, so a string needs quotes: --set 'data_dir="/srv/x"'
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
    /// The data folder; the same as --set 'data_dir="FOLDER"'
    #[arg(long, value_name = "FOLDER")]
    pub(super) data_dir: Option<String>,
}

impl Settings {
    /// These and the ones behind them on the command line, which win.
    pub(super) fn and(mut self, later: Self) -> Self {
        self.set.extend(later.set);
        Self {
            config: later.config.or(self.config),
            set: self.set,
            data_dir: later.data_dir.or(self.data_dir),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serves; this is what happens without a command
    Serve(Settings),
    #[command(flatten)]
    Admin(AdminCommand),
    /// Checks and shows the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Repairs the queue of a data folder, and tells what waits in it
    #[command(subcommand)]
    Queue(QueueCommand),
    /// Writes archives out
    #[command(subcommand)]
    Archive(ArchiveCommand),
    /// Kills a throw-away server again and again, and counts what was lost
    #[command(after_help = CRASHTEST)]
    Crashtest(Crashtest),
}

/// What is asked of a server, running or not.
#[derive(Debug, Subcommand)]
pub(super) enum AdminCommand {
    /// Makes, changes, removes and shows accounts
    #[command(subcommand)]
    User(UserCommand),
    /// Shows and closes the sessions of a running server
    #[command(subcommand)]
    Session(SessionCommand),
    /// Shows what waits for other domains and the streams to them, of a running server
    #[command(subcommand)]
    Federation(FederationCommand),
    /// Says how a running server is
    #[command(after_help = "\
The timers of a thread are late when something keeps it: then every session on it waits as long.
Below 20 ms nobody notices.
A message waits for a commit to the queue before it is acknowledged: that is how quick the disk is.

Examples:
  waystation status
  waystation status --timers --json")]
    Status(Status),
    /// Makes a running server read its certificates again
    Reload(Settings),
}

impl AdminCommand {
    /// The options behind the command.
    pub(super) fn settings(&self) -> &Settings {
        match self {
            Self::User(UserCommand::Add(command)) => &command.settings,
            Self::User(UserCommand::Passwd(command)) => &command.settings,
            Self::User(UserCommand::Remove(command)) => &command.settings,
            Self::User(UserCommand::List(command)) => &command.settings,
            Self::User(UserCommand::Show(command)) => &command.settings,
            Self::Session(SessionCommand::List(command)) => &command.settings,
            Self::Session(SessionCommand::Kick(command)) => &command.settings,
            Self::Federation(FederationCommand::List(command)) => &command.settings,
            Self::Federation(FederationCommand::Show(command)) => &command.settings,
            Self::Federation(FederationCommand::Retry(command) | FederationCommand::Flush(command)) => {
                &command.settings
            }
            Self::Status(command) => &command.settings,
            Self::Reload(settings) => settings,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// Makes an account, or many
    #[command(after_help = "\
Examples:
  waystation user add ann@localhost
  printf '%s\\n' \"$PASSWORD\" | waystation user add ann@localhost --password-stdin
  waystation user add --bulk accounts.txt        each line: JID, a blank, the password")]
    Add(AddUser),
    /// Changes the password of an account and closes its sessions
    Passwd(SetPassword),
    /// Removes an account with all that is kept of it, and tells its contacts
    Remove(OneUser),
    /// Lists accounts
    List(ListUsers),
    /// Shows an account
    Show(ShowUser),
}

#[derive(Debug, Args)]
pub(super) struct AddUser {
    /// The account, such as ann@localhost
    #[arg(required_unless_present = "bulk")]
    pub(super) jid: Option<String>,
    /// Reads the password from standard input: its only line
    #[arg(long)]
    pub(super) password_stdin: bool,
    /// Makes many accounts: FILE has a JID, a blank and a password on each line; "-" is standard
    /// input. Empty lines and lines that begin with # are skipped
    #[arg(long, value_name = "FILE", conflicts_with_all = ["jid", "password_stdin"])]
    pub(super) bulk: Option<PathBuf>,
    #[command(flatten)]
    pub(super) settings: Settings,
}

#[derive(Debug, Args)]
pub(super) struct SetPassword {
    /// The account, such as ann@localhost
    pub(super) jid: String,
    /// Reads the password from standard input: its only line
    #[arg(long)]
    pub(super) password_stdin: bool,
    #[command(flatten)]
    pub(super) settings: Settings,
}

#[derive(Debug, Args)]
pub(super) struct OneUser {
    /// The account, such as ann@localhost
    pub(super) jid: String,
    #[command(flatten)]
    pub(super) settings: Settings,
}

#[derive(Debug, Args)]
pub(super) struct ShowUser {
    /// The account, such as ann@localhost
    pub(super) jid: String,
    /// Writes JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) settings: Settings,
}

#[derive(Debug, Args)]
pub(super) struct Page {
    /// Shows at most so many, and where to go on
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) limit: Option<u64>,
    /// Begins behind this JID, which need not exist
    #[arg(long, value_name = "JID")]
    pub(super) after: Option<String>,
    /// Writes JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ListUsers {
    /// Only accounts of this host
    pub(super) host: Option<String>,
    #[command(flatten)]
    pub(super) page: Page,
    #[command(flatten)]
    pub(super) settings: Settings,
}

#[derive(Debug, Subcommand)]
pub(super) enum SessionCommand {
    /// Lists sessions
    List(ListSessions),
    /// Closes one session of an account, or all
    #[command(after_help = "\
Examples:
  waystation session kick ann@localhost/phone
  waystation session kick ann@localhost --condition not-authorized --text 'ask the office'")]
    Kick(Kick),
}

#[derive(Debug, Args)]
pub(super) struct ListSessions {
    /// Only sessions of this account
    pub(super) jid: Option<String>,
    #[command(flatten)]
    pub(super) page: Page,
    #[command(flatten)]
    pub(super) settings: Settings,
}

#[derive(Debug, Args)]
pub(super) struct Kick {
    /// A session (ann@localhost/phone), or an account for all its sessions
    pub(super) jid: String,
    /// The stream error that the client gets (RFC 6120 4.9.3)
    #[arg(long, value_enum, default_value = "policy-violation")]
    pub(super) condition: Condition,
    /// A text for whoever reads the error
    #[arg(long)]
    pub(super) text: Option<String>,
    #[command(flatten)]
    pub(super) settings: Settings,
}

#[derive(Debug, Subcommand)]
pub(super) enum FederationCommand {
    /// Lists the domains that something waits for or that there is a stream to
    List(ListDomains),
    /// Shows all that is known of a domain: state, queue, last error, certificate, next try
    Show(ShowDomain),
    /// Tries to reach a domain now, instead of at its next turn
    Retry(OneDomain),
    /// Sends everything that waits for a domain back to its senders, as errors
    #[command(after_help = "\
Examples:
  waystation federation list
  waystation federation flush gone.example")]
    Flush(OneDomain),
}

#[derive(Debug, Args)]
pub(super) struct ListDomains {
    /// Writes JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) settings: Settings,
}

#[derive(Debug, Args)]
pub(super) struct ShowDomain {
    /// The domain, such as example.org
    pub(super) domain: String,
    /// Writes JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) settings: Settings,
}

#[derive(Debug, Args)]
pub(super) struct OneDomain {
    /// The domain, such as example.org
    pub(super) domain: String,
    #[command(flatten)]
    pub(super) settings: Settings,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Says whether a configuration is right, or what is wrong with it
    Check(CheckConfig),
    /// Shows every key with the value in force and where it was set
    Show(ShowConfig),
    /// Writes the commented reference of every key, to begin a file with
    Reference,
}

#[derive(Debug, Args)]
pub(super) struct CheckConfig {
    /// The same as --config FILE
    #[arg(value_name = "FILE", conflicts_with = "config")]
    pub(super) file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) settings: Settings,
}

#[derive(Debug, Args)]
pub(super) struct ShowConfig {
    /// Writes JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) settings: Settings,
}

#[derive(Debug, Args)]
pub(super) struct Status {
    /// Measures for a second how late timers of 10 ms are on each of the server's threads
    #[arg(long)]
    pub(super) timers: bool,
    /// Writes JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) settings: Settings,
}

/// What is done with the queue of a data folder.
#[derive(Debug, Subcommand)]
pub(super) enum QueueCommand {
    /// Sets damaged parts aside, so that the server starts again, and says what was lost
    #[command(after_help = "\
What is damaged is copied to files damaged-* in the folder \"queue\" before anything is changed, and the
report names all of it. A queue without damage is left as it is. The server must be stopped.")]
    Repair(Settings),
    /// Says how much waits in the queue; the server must be stopped
    Stats(QueueStats),
}

impl QueueCommand {
    /// The options behind the command.
    pub(super) fn settings(&self) -> &Settings {
        match self {
            Self::Repair(settings) => settings,
            Self::Stats(command) => &command.settings,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct QueueStats {
    /// Writes JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) settings: Settings,
}

/// What is done with archives.
#[derive(Debug, Subcommand)]
pub(super) enum ArchiveCommand {
    /// Writes the archive of an account as XML (XEP-0227); the server must be stopped
    #[command(after_help = "\
Examples:
  waystation archive export ann@localhost > ann.xml
  waystation archive export ann@localhost --output ann.xml")]
    Export(ExportArchive),
}

impl ArchiveCommand {
    /// The options behind the command.
    pub(super) fn settings(&self) -> &Settings {
        let Self::Export(command) = self;
        &command.settings
    }
}

#[derive(Debug, Args)]
pub(super) struct ExportArchive {
    /// The account, such as ann@localhost
    pub(super) account: String,
    /// Writes to this file, which appears when it is whole; else to standard output
    #[arg(long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    #[command(flatten)]
    pub(super) settings: Settings,
}

#[derive(Debug, Args)]
pub(super) struct Crashtest {
    /// How often the server is killed
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) cycles: u32,
    /// Clients that send messages to each other
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(2..=500))]
    pub(super) clients: u16,
    /// Messages a second, all clients together
    #[arg(long, value_name = "MESSAGES", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) rate: u32,
    /// The durability that the server is to keep
    #[arg(long, value_enum, default_value = "fsync")]
    pub(super) durability: Durability,
    /// Keeps the temporary folder: the server's data and its log
    #[arg(long)]
    pub(super) keep: bool,
    /// Writes the report as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// What `durability` may be set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Durability {
    /// What is acknowledged survives power loss
    Fsync,
    /// What is acknowledged survives a crash of the server, but not of the machine
    Os,
    /// Nothing survives
    Memory,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn options_before_and_behind_the_command_are_joined() {
        let line = "waystation --set a=1 --data-dir x user show a@b --set b=2 --data-dir y";
        let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
        let Some(Command::Admin(command)) = arguments.command else { panic!() };
        let settings = arguments.settings.and(command.settings().clone());
        assert_eq!(settings.set, ["a=1", "b=2"]);
        assert_eq!(settings.data_dir.as_deref(), Some("y"));
    }
}
