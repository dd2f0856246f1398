//! The order in which a domain's servers are tried (RFC 2782, "Usage rules").

use hickory_resolver::proto::rr::Name;

/// A server of a domain, as an SRV record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    /// The lowest ones are tried first.
    pub(crate) priority: u16,
    /// How often it comes first among those of its priority, relative to theirs.
    pub(crate) weight: u16,
    pub(crate) port: u16,
    pub(crate) target: Name,
    /// It speaks TLS from the first byte (XEP-0368).
    pub(crate) direct_tls: bool,
}

/// The first `most` of the services in the order in which they are to be tried. `random` gives a number from 0
/// up to and with the one that it is given.
pub(crate) fn order(
    mut services: Vec<Service>,
    most: usize,
    mut random: impl FnMut(u32) -> u32,
) -> Vec<Service> {
    // Services without a weight come first in the running sum, so that they are chosen as rarely as can be;
    // among themselves they are to have no order.
    for last in (1..services.len()).rev() {
        let other = random(u32::try_from(last).unwrap_or(u32::MAX)) as usize;
        services.swap(last, other.min(last));
    }
    services.sort_by_key(|s| (s.priority, s.weight != 0));
    let mut out = Vec::with_capacity(services.len().min(most));
    while out.len() < most && !services.is_empty() {
        let priority = services[0].priority;
        let group = services.iter().take_while(|s| s.priority == priority);
        let sum = group.clone().fold(0_u32, |sum, s| sum.saturating_add(s.weight.into()));
        let drawn = random(sum);
        let mut running = 0_u32;
        let chosen = group.clone().position(|s| {
            running = running.saturating_add(s.weight.into());
            running >= drawn
        });
        out.push(services.remove(chosen.unwrap_or(0)));
    }
    out
}

/// A number from 0 up to and with `most`, from the system. Only the order of servers hangs on it: when the
/// system has none, it is 0.
pub(crate) fn random(most: u32) -> u32 {
    let drawn = getrandom::u64().unwrap_or(0);
    u32::try_from(drawn % (u64::from(most) + 1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn service(priority: u16, weight: u16, port: u16) -> Service {
        Service { priority, weight, port, target: Name::root(), direct_tls: false }
    }

    fn first(services: &[Service], rounds: u32) -> HashMap<u16, u32> {
        let mut counts = HashMap::new();
        for _ in 0..rounds {
            *counts.entry(order(services.to_vec(), 16, random)[0].port).or_default() += 1;
        }
        counts
    }

    #[test]
    fn priorities_are_kept_and_weights_say_how_often_one_is_first() {
        let services = [service(5, 0, 9), service(1, 10, 1), service(1, 30, 3), service(1, 60, 6)];
        let counts = first(&services, 10_000);
        assert_eq!(counts.get(&9), None, "a higher number is never first");
        for (port, share) in [(1, 1000), (3, 3000), (6, 6000)] {
            // Some eight standard deviations to either side.
            assert!(counts[&port].abs_diff(share) < 400, "{port}: {counts:?}");
        }
        let ports: Vec<_> = order(services.to_vec(), 16, random).iter().map(|s| s.port).collect();
        assert_eq!((ports.len(), ports[3]), (4, 9));
    }

    #[test]
    fn without_weights_every_one_is_first_at_times_and_beside_a_weight_hardly_ever() {
        let counts = first(&[service(0, 0, 1), service(0, 0, 2), service(0, 0, 3)], 3000);
        assert!((1..=3).all(|port| counts[&port].abs_diff(1000) < 250), "{counts:?}");
        let counts = first(&[service(0, 99, 1), service(0, 0, 2)], 5000);
        assert!((1..200).contains(&counts[&2]), "once in a hundred times: {counts:?}");
    }

    #[test]
    fn no_more_are_ordered_than_are_tried() {
        let many: Vec<_> = (0..2000).map(|n| service(n % 7, n, n)).collect();
        let chosen = order(many, 16, random);
        assert_eq!(chosen.len(), 16);
        assert!(chosen.iter().all(|s| s.priority == 0));
        assert!(order(Vec::new(), 16, random).is_empty());
        let most = u16::MAX;
        assert_eq!(order(vec![service(0, most, 1); 100_000], 1, random).len(), 1, "sums do not overflow");
    }
}
