//! The servers under load: which programs, and how each is set up.
//!
//! A name here is a column of the report and means the same in every run, so
//! that reports can be compared; what a set-up is beside this project's and
//! the peers' defaults stands here and in the README, and nowhere else. Two names
//! with a plus are two servers that talk to each other.

use std::process::Command;

use waystation_harness::Kind;

/// A server as it is put under load: which one, and how it is set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject {
    /// Name in the report.
    pub(crate) name: &'static str,
    /// The program.
    pub(crate) kind: Kind,
    /// This project's server only: keys beside the defaults.
    pub(crate) settings: &'static [(&'static str, &'static str)],
    /// Peers only: further modules.
    pub(crate) modules: &'static [&'static str],
    /// Whether messages are archived.
    pub(crate) archive: bool,
    /// The server that it talks to.
    pub(crate) other: Option<&'static Subject>,
    /// No server: what the kernel and the cryptography cost alone ([`crate::floor`]).
    pub(crate) floor: bool,
}

/// The name of what is no server.
pub(crate) const FLOOR: &str = "floor";

const WAYSTATION: Subject = Subject { archive: true, ..Subject::ours("waystation", &[]) };
const MEMORY: Subject =
    Subject::ours("waystation-memory", &[("archive.enabled", "false"), ("durability", "'memory'")]);
const PROSODY: Subject = Subject::peer("prosody", Kind::Prosody, &["smacks"]);
const EJABBERD: Subject = Subject::peer("ejabberd", Kind::Ejabberd, &["mod_stream_mgmt: {}"]);

const SUBJECTS: [Subject; 16] = [
    WAYSTATION,
    Subject::ours("waystation-fsync", &[("archive.enabled", "false")]),
    Subject::ours("waystation-os", &[("archive.enabled", "false"), ("durability", "'os'")]),
    MEMORY,
    PROSODY,
    Subject { archive: true, ..Subject::peer("prosody-archive", Kind::Prosody, &["smacks", "mam"]) },
    EJABBERD,
    Subject {
        archive: true,
        ..Subject::peer(
            "ejabberd-archive",
            Kind::Ejabberd,
            &["mod_stream_mgmt: {}", "mod_mam: {default: always}"],
        )
    },
    Subject { floor: true, ..Subject::ours(FLOOR, &[]) },
    Subject { name: "waystation+waystation", other: Some(&WAYSTATION), ..WAYSTATION },
    Subject { name: "waystation-memory+waystation-memory", other: Some(&MEMORY), ..MEMORY },
    Subject { name: "waystation+prosody", other: Some(&PROSODY), ..WAYSTATION },
    Subject { name: "waystation-memory+prosody", other: Some(&PROSODY), ..MEMORY },
    Subject { name: "waystation+ejabberd", other: Some(&EJABBERD), ..WAYSTATION },
    Subject { name: "prosody+prosody", other: Some(&PROSODY), ..PROSODY },
    Subject { name: "ejabberd+ejabberd", other: Some(&EJABBERD), ..EJABBERD },
];

impl Subject {
    const fn ours(name: &'static str, settings: &'static [(&'static str, &'static str)]) -> Self {
        Self {
            name,
            kind: Kind::Waystation,
            settings,
            modules: &[],
            archive: false,
            other: None,
            floor: false,
        }
    }

    const fn peer(name: &'static str, kind: Kind, modules: &'static [&'static str]) -> Self {
        Self { name, kind, settings: &[], modules, archive: false, other: None, floor: false }
    }

    /// Finds a server by its name in the report.
    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        let names = SUBJECTS.map(|subject| subject.name).join(", ");
        let found = SUBJECTS.into_iter().find(|subject| subject.name == name);
        found.ok_or_else(|| format!("no such server: {name}; there are {names}"))
    }

    /// Whether it is one of the servers that ours is compared with.
    pub(crate) fn is_peer(&self) -> bool {
        self.kind != Kind::Waystation
    }

    /// Whether only this project's server is in it.
    pub(crate) fn is_ours_alone(&self) -> bool {
        !self.is_peer() && self.other.is_none_or(|other| !other.is_peer())
    }

    /// The version of the program that is installed or built, and that of the other one if that is another;
    /// empty when it does not say.
    pub(crate) fn version(&self) -> String {
        match self.other {
            _ if self.floor => "(no server: the kernel and the cryptography alone)".to_owned(),
            Some(other) if other.kind != self.kind => format!("{} + {}", self.own_version(), other.version()),
            _ => self.own_version(),
        }
    }

    fn own_version(&self) -> String {
        let output = match self.kind {
            Kind::Waystation => waystation_harness::waystation::binary()
                .ok()
                .and_then(|path| Command::new(path).arg("--version").output().ok()),
            Kind::Prosody | Kind::Ejabberd => {
                Command::new("dpkg-query").args(["-W", "-f", "${Version}", self.kind.name()]).output().ok()
            }
        };
        output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for subject in SUBJECTS {
            let found = Subject::parse(subject.name).unwrap();
            assert_eq!(
                (found.archive, found.modules),
                (subject.archive, subject.modules),
                "{}",
                subject.name
            );
            let ours = subject.floor || subject.name.starts_with("waystation");
            assert_eq!(subject.is_peer(), !ours);
            assert_eq!(subject.other.map(|other| other.name), subject.name.split('+').nth(1));
        }
        assert!(Subject::parse("nothing").unwrap_err().contains("ejabberd-archive"));
    }
}
