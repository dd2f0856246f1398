//! The kinds of load, and which server each is put on.
//!
//! A name here is a row of the report and means the same in every run. A server
//! that a load is not put on is left out with the reason, never silently.

use waystation_harness::{Security, Transport};

use crate::subjects::Subject;
use crate::suite::Options;
use crate::{blackhole, drain, floor, growth, logins, pairs, presence};

/// Messages in the archive that growth-archive begins with.
const ARCHIVED: usize = 10_000;

/// One kind of load.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load {
    /// Of [`pairs`].
    Pairs(pairs::Shape),
    /// Of [`logins`].
    Logins(logins::Shape),
    /// Of [`presence`].
    Presence(presence::Shape),
    /// Of `idle`, with so many sessions.
    Idle(usize),
    /// Of [`drain`].
    Drain(drain::Shape),
    /// Of [`growth::sessions`].
    GrowSessions(growth::Shape),
    /// Of [`growth::archive`].
    GrowArchive(growth::Shape),
    /// Of `federation`, with the pairs' users on two servers.
    Federation(pairs::Shape),
    /// Of [`blackhole`].
    Blackhole(blackhole::Shape),
}

/// A load with its name and with how its users connect.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    /// Name in the report.
    pub(crate) name: String,
    /// How streams get to the server.
    pub(crate) transport: Transport,
    /// How connections are secured; those of the web are not.
    pub(crate) security: Security,
    /// The load.
    pub(crate) load: Load,
}

impl Workload {
    fn new(name: impl Into<String>, security: Security, load: Load) -> Self {
        Self { name: name.into(), transport: Transport::Tcp, security, load }
    }

    fn on_the_web(name: impl Into<String>, transport: Transport, load: Load) -> Self {
        Self { name: name.into(), transport, security: Security::None, load }
    }

    /// Whether it is for two servers that talk to each other.
    pub(crate) fn is_between_servers(&self) -> bool {
        matches!(self.load, Load::Federation(_) | Load::Blackhole(_))
    }

    /// Accounts that it needs on each server.
    pub(crate) fn users(&self) -> usize {
        match self.load {
            Load::Pairs(shape) => shape.pairs * 2,
            Load::Federation(shape) => shape.pairs,
            Load::Blackhole(shape) => shape.users(),
            Load::Logins(shape) => shape.users,
            Load::Presence(shape) => shape.users + shape.contacts,
            Load::Idle(count) => count,
            Load::Drain(shape) => shape.accounts * 2,
            Load::GrowArchive(shape) => shape.pairs.pairs * 2,
            Load::GrowSessions(shape) => shape.pairs.pairs * 2 + shape.many,
        }
    }

    /// The load as this server gets it, or why it does not.
    pub(crate) fn for_subject(&self, subject: &Subject, options: &Options) -> Result<Self, String> {
        let most = options.peer_sessions;
        match self.load {
            load if subject.floor && !floor::has(load) => {
                Err("there is nothing to be measured without a server".to_owned())
            }
            Load::Idle(count) if subject.is_peer() && count > most => Err(format!(
                "peers are given at most {most} sessions, for the time that logging them in takes and the memory"
            )),
            Load::GrowSessions(shape) if subject.is_peer() => {
                let fewer = growth::Shape { many: shape.many.min(most), ..shape };
                Ok(Self { load: Load::GrowSessions(fewer), ..self.clone() })
            }
            Load::Blackhole(_) if !subject.is_ours_alone() => {
                Err("the peers do not keep what waits for another domain".to_owned())
            }
            Load::GrowArchive(_) if !subject.archive => Err("it has no archive".to_owned()),
            Load::GrowArchive(shape) if subject.is_peer() => {
                let fewer = growth::Shape { many: options.peer_archived, ..shape };
                Ok(Self { load: Load::GrowArchive(fewer), ..self.clone() })
            }
            _ => Ok(self.clone()),
        }
    }
}

/// All workloads, in the order of the report.
pub(crate) fn all(options: &Options) -> Vec<Workload> {
    let shape = |pairs, window| pairs::Shape {
        pairs,
        window,
        body: 100,
        to_full: false,
        managed: false,
        warm_up: 2.0,
        seconds: options.seconds,
    };
    let pairs = |pairs, window| Load::Pairs(shape(pairs, window));
    let managed = |pairs, window| Load::Pairs(pairs::Shape { managed: true, ..shape(pairs, window) });
    let logins = Load::Logins(logins::Shape { users: 200, seconds: options.seconds });
    let presence = |users, contacts| {
        Load::Presence(presence::Shape { users, contacts, warm_up: 1.0, seconds: options.seconds })
    };
    let (none, tls, starttls) = (Security::None, Security::Direct, Security::StartTls);
    let mut all = vec![
        Workload::new("pairs-100x10", none, pairs(100, 10)),
        Workload::new("pairs-100x10-tls", tls, pairs(100, 10)),
        Workload::new("pairs-100x10-sm", none, managed(100, 10)),
        Workload::new("pairs-100x1", none, pairs(100, 1)),
        Workload::new("pairs-100x100", none, pairs(100, 100)),
        Workload::new("pairs-20x1", none, pairs(20, 1)),
        Workload::new("logins", none, logins),
        Workload::new("logins-starttls", starttls, logins),
        Workload::new("presence-200", none, presence(1, 200)),
        Workload::new("presence-200x10", none, presence(10, 200)),
        Workload::new("presence-1000", none, presence(1, 1_000)),
    ];
    for count in &options.sessions {
        all.push(Workload::new(format!("idle-{count}"), none, Load::Idle(*count)));
        all.push(Workload::new(format!("idle-{count}-tls"), tls, Load::Idle(*count)));
    }
    let drain = Load::Drain(drain::Shape { accounts: 20, messages: options.offline });
    all.push(Workload::new("drain", none, drain));
    let paced = |few, many| growth::Shape { pairs: shape(100, 10), rate: options.rate, few, many };
    let archive = Load::GrowArchive(paced(ARCHIVED, options.archived));
    all.push(Workload::new("growth-archive", none, archive));
    all.push(Workload::new(
        "growth-sessions",
        none,
        Load::GrowSessions(paced(options.grow_from, options.grow_to)),
    ));
    for (name, transport) in [("websocket", Transport::WebSocket), ("bosh", Transport::Bosh)] {
        all.push(Workload::on_the_web(format!("{name}-100x10"), transport, pairs(100, 10)));
        all.push(Workload::on_the_web(format!("{name}-100x1"), transport, pairs(100, 1)));
        let count = options.web_sessions;
        all.push(Workload::on_the_web(format!("idle-{name}-{count}"), transport, Load::Idle(count)));
    }
    all.push(Workload::new("federation-100x10", none, Load::Federation(shape(100, 10))));
    let blackhole = blackhole::Shape { pairs: shape(50, 10), rate: options.rate, waiting: options.waiting };
    all.push(Workload::new("federation-blackhole", none, Load::Blackhole(blackhole)));
    all
}

/// Keeps the workloads that are named, and those whose names contain a part that is no name.
pub(crate) fn only(mut all: Vec<Workload>, parts: &[String]) -> Vec<Workload> {
    if parts.is_empty() {
        return all;
    }
    let names: Vec<String> = all.iter().map(|w| w.name.clone()).collect();
    let means = |part: &String, name: &str| name == part || (!names.contains(part) && name.contains(part));
    all.retain(|w| parts.iter().any(|part| means(part, &w.name)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(parts: &[&str]) -> Vec<String> {
        let parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
        only(all(&Options::for_tests()), &parts).into_iter().map(|w| w.name).collect()
    }

    #[test]
    fn a_name_means_itself_and_a_part_all_that_contain_it() {
        assert_eq!(named(&["logins"]), ["logins"]);
        assert_eq!(named(&["presence-"]), ["presence-200", "presence-200x10", "presence-1000"]);
        assert_eq!(named(&["idle-2", "pairs-20x1"]), ["pairs-20x1", "idle-20", "idle-20-tls"]);
        assert_eq!(named(&["bosh"]), ["bosh-100x10", "bosh-100x1", "idle-bosh-30"]);
        assert!(named(&["nothing"]).is_empty());
        assert!(named(&[]).len() > 10);
    }

    #[test]
    fn archives_grow_where_there_are_any() {
        let options = Options::for_tests();
        let workload = all(&options).into_iter().find(|w| w.name == "growth-archive").unwrap();
        let of = |name: &str| {
            let given = workload.for_subject(&Subject::parse(name).unwrap(), &options).ok()?;
            let Load::GrowArchive(shape) = given.load else { panic!("another load: {given:?}") };
            Some(shape.many)
        };
        assert_eq!(of("waystation"), Some(options.archived));
        assert_eq!(of("ejabberd-archive"), Some(options.peer_archived));
        assert_eq!((of("waystation-fsync"), of("prosody")), (None, None));
    }

    #[test]
    fn what_is_between_servers_is_for_two_of_them() {
        let options = Options::for_tests();
        let subject = |name: &str| Subject::parse(name).unwrap();
        for workload in all(&options) {
            assert_eq!(workload.is_between_servers(), workload.name.starts_with("federation"));
        }
        let hole = all(&options).into_iter().find(|w| w.name == "federation-blackhole").unwrap();
        let given = |name| hole.for_subject(&subject(name), &options).is_ok();
        assert!(given("waystation+waystation"));
        assert!(!given("waystation+prosody") && !given("ejabberd+ejabberd"));
    }

    #[test]
    fn peers_get_fewer_sessions() {
        let options = Options::for_tests();
        let (ours, peer) = (Subject::parse("waystation").unwrap(), Subject::parse("prosody").unwrap());
        for (count, fits) in [(options.peer_sessions, true), (options.peer_sessions + 1, false)] {
            let idle = Workload::new("idle", Security::None, Load::Idle(count));
            assert!(idle.for_subject(&ours, &options).is_ok());
            assert_eq!(idle.for_subject(&peer, &options).is_ok(), fits);
        }
    }
}
