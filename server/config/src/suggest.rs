//! "Did you mean": the known name nearest to an unknown one.

/// The candidate that is most like `name`, when one is near enough to be a slip of the hand.
///
/// Names are compared whole and by their last part, so that a key in the wrong section is found.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let last = last_part(name);
    candidates
        .filter_map(|candidate| {
            let whole = distance(name, candidate);
            // A slip in one part out of several: never more than a third of the name.
            let near = whole <= (name.chars().count().max(3) / 3).min(4);
            // The right word in the wrong section.
            let moved = last.len() > 2 && last_part(candidate) == last;
            (near || moved).then_some((whole, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Edits (insert, remove, replace, swap of neighbours) from one string to the other.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(128).collect();
    let b: Vec<char> = b.chars().take(128).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i);
        for j in 1..=b.len() {
            let replace = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] =
        ["data_dir", "listen.c2s", "listen.c2s_tls", "tls.required", "registration.enabled"];

    fn suggest(name: &str) -> Option<&'static str> {
        nearest(name, NAMES.into_iter())
    }

    #[test]
    fn slips_of_the_hand_are_found() {
        assert_eq!(suggest("tls.requird"), Some("tls.required"));
        assert_eq!(suggest("listen.c2s_tsl"), Some("listen.c2s_tls"));
        assert_eq!(suggest("datadir"), Some("data_dir"));
    }

    #[test]
    fn the_right_word_in_the_wrong_section_is_found() {
        assert_eq!(suggest("required"), Some("tls.required"));
        assert_eq!(suggest("c2s.c2s_tls"), Some("listen.c2s_tls"));
    }

    #[test]
    fn nothing_is_suggested_for_what_is_like_nothing() {
        assert_eq!(suggest("colour"), None);
        assert_eq!(suggest("x"), None);
    }

    #[test]
    fn distance_counts_edits() {
        for (a, b, edits) in
            [("", "", 0), ("abc", "", 3), ("abc", "abc", 0), ("abc", "acb", 1), ("abc", "axbd", 2)]
        {
            assert_eq!(distance(a, b), edits, "{a} {b}");
            assert_eq!(distance(b, a), edits, "{b} {a}");
        }
    }
}
