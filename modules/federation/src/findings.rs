//! What was learnt while a domain's server was looked for, and what it means when none was reached.

use waystation_route::remote::EndCause;

/// What is told in words at most, besides the last; of the rest, how many there were.
const TOLD: usize = 6;

/// Why no server of a domain, or no other one, was reached. The texts are for administrators.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The domain does not exist, or it has no XMPP server: DNS has said so.
    #[error("{0}")]
    NotFound(String),
    /// There is one, and nothing of it may be dialled.
    #[error("{0}")]
    Refused(String),
    /// DNS has not answered, or no server has. The next attempt may succeed.
    #[error("{0}")]
    Failed(String),
}

impl DialError {
    /// What it means for what waits for the domain.
    pub fn cause(&self) -> EndCause {
        match self {
            Self::NotFound(_) => EndCause::NotFound,
            Self::Refused(_) => EndCause::Refused,
            Self::Failed(_) => EndCause::Failed,
        }
    }
}

/// What was asked and answered, as far as it led to nothing.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    told: Vec<String>,
    /// The last of those that were too many.
    last: Option<String>,
    untold: usize,
    failed: bool,
    refused: bool,
}

impl Findings {
    /// Something is certain not to be there.
    pub(crate) fn nothing(&mut self, text: String) {
        if self.told.len() < TOLD {
            self.told.push(text);
        } else if self.last.replace(text).is_some() {
            self.untold += 1;
        }
    }

    /// Something is there and may not be dialled.
    pub(crate) fn refused(&mut self, text: String) {
        self.refused = true;
        self.nothing(text);
    }

    /// Something went wrong that may go well the next time.
    pub(crate) fn failed(&mut self, text: String) {
        self.failed = true;
        self.nothing(text);
    }

    /// All of it together: a single thing that may go well the next time makes the whole one of these, and
    /// nothing is certain not to exist while something of it was refused.
    pub(crate) fn verdict(&self, domain: &str) -> DialError {
        let mut text = format!("no server of {domain} was reached: {}", self.told.join("; "));
        if self.untold > 0 {
            text.push_str(&format!("; {} more", self.untold));
        }
        if let Some(last) = &self.last {
            text.push_str("; ");
            text.push_str(last);
        }
        match (self.failed, self.refused) {
            (true, _) => DialError::Failed(text),
            (false, true) => DialError::Refused(text),
            (false, false) => DialError::NotFound(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_go_well_the_next_time_outweighs_the_rest() {
        let mut findings = Findings::default();
        findings.nothing("a".to_owned());
        let text = "no server of x was reached: a".to_owned();
        assert_eq!(findings.verdict("x"), DialError::NotFound(text.clone()));
        findings.refused("b".to_owned());
        assert_eq!(findings.verdict("x"), DialError::Refused(format!("{text}; b")));
        for _ in 0..6 {
            findings.failed("c".to_owned());
        }
        findings.nothing("d".to_owned());
        let text = format!("{text}; b; c; c; c; c; 2 more; d");
        assert_eq!(findings.verdict("x"), DialError::Failed(text));
        assert_eq!(findings.verdict("x").cause(), EndCause::Failed);
    }
}
