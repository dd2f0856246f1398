//! The subscription state machine of RFC 6121 Appendix A, without input or output.
//!
//! What must hold: every cell of tables 2 to 9 is one outcome of [`outbound`] or [`inbound`];
//! nothing else in the module decides what a subscription stanza does to a state.

/// One direction of a presence subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Half {
    /// Not subscribed and not asked.
    #[default]
    None,
    /// Asked, not answered yet.
    Pending,
    /// Subscribed.
    Subscribed,
}

/// One of the nine states of Appendix A.1, seen from the account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// The account's subscription to the contact ("To", "Pending Out").
    pub(crate) to: Half,
    /// The contact's subscription to the account ("From", "Pending In").
    pub(crate) from: Half,
}

impl State {
    /// The `subscription` attribute of the roster item (RFC 6121 2.1.2.5).
    pub(crate) fn attribute(self) -> &'static str {
        match (self.to == Half::Subscribed, self.from == Half::Subscribed) {
            (false, false) => "none",
            (true, false) => "to",
            (false, true) => "from",
            (true, true) => "both",
        }
    }

    /// True when the contact may see the account's presence.
    pub(crate) fn is_from(self) -> bool {
        self.from == Half::Subscribed
    }

    /// True when the account may see the contact's presence.
    pub(crate) fn is_to(self) -> bool {
        self.to == Half::Subscribed
    }

    /// True when the contact waits for an answer ("Pending In").
    pub(crate) fn is_pending_in(self) -> bool {
        self.from == Half::Pending
    }

    /// True when the account waits for an answer ("Pending Out", `ask='subscribe'`).
    pub(crate) fn is_pending_out(self) -> bool {
        self.to == Half::Pending
    }
}

/// A subscription-related presence type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Request {
    /// Asks for a subscription to the recipient.
    Subscribe,
    /// Grants the recipient a subscription.
    Subscribed,
    /// Ends the sender's subscription to the recipient.
    Unsubscribe,
    /// Ends, or refuses, the recipient's subscription.
    Unsubscribed,
}

/// What a stanza sent by the account does (Appendix A.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outbound {
    /// Whether it goes to the contact.
    pub(crate) route: bool,
    /// The state afterwards.
    pub(crate) state: State,
    /// The pre-approval afterwards (RFC 6121 3.4).
    pub(crate) approved: bool,
}

/// What a stanza received from the contact does (Appendix A.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inbound {
    /// Whether the account's resources get it.
    pub(crate) deliver: bool,
    /// The state afterwards.
    pub(crate) state: State,
    /// What the server answers on the account's behalf.
    pub(crate) reply: Option<Request>,
}

/// Processes a subscription stanza that the account sends.
pub(crate) fn outbound(state: State, approved: bool, request: Request) -> Outbound {
    let same = Outbound { route: true, state, approved };
    match (request, state.to, state.from) {
        // A.2.1
        (Request::Subscribe, Half::None, _) => {
            Outbound { state: State { to: Half::Pending, ..state }, ..same }
        }
        (Request::Subscribe, ..) => same,
        // A.2.2
        (Request::Unsubscribe, ..) => Outbound { state: State { to: Half::None, ..state }, ..same },
        // A.2.3, 3.4.2
        (Request::Subscribed, _, Half::Pending) => {
            Outbound { state: State { from: Half::Subscribed, ..state }, ..same }
        }
        (Request::Subscribed, _, Half::None) => Outbound { route: false, approved: true, ..same },
        (Request::Subscribed, _, Half::Subscribed) => Outbound { route: false, ..same },
        // A.2.4, 3.2.2; a pre-approval lasts "until and unless the user sends a presence stanza
        // of type unsubscribed" (3.4.2).
        (Request::Unsubscribed, _, Half::None) => Outbound { route: false, approved: false, ..same },
        (Request::Unsubscribed, ..) => {
            Outbound { state: State { from: Half::None, ..state }, approved: false, ..same }
        }
    }
}

/// Processes a subscription stanza that the account receives.
pub(crate) fn inbound(state: State, approved: bool, request: Request) -> Inbound {
    let ignored = Inbound { deliver: false, state, reply: None };
    match (request, state.to, state.from) {
        // A.3.1; note [1] and 3.4.2: a pre-approved request is granted without being delivered.
        (Request::Subscribe, _, Half::None) if approved => Inbound {
            state: State { from: Half::Subscribed, ..state },
            reply: Some(Request::Subscribed),
            ..ignored
        },
        (Request::Subscribe, _, Half::None) => {
            Inbound { deliver: true, state: State { from: Half::Pending, ..state }, reply: None }
        }
        (Request::Subscribe, _, Half::Pending) => ignored,
        (Request::Subscribe, _, Half::Subscribed) => Inbound { reply: Some(Request::Subscribed), ..ignored },
        // A.3.2
        (Request::Unsubscribe, _, Half::None) => ignored,
        (Request::Unsubscribe, _, Half::Pending | Half::Subscribed) => Inbound {
            deliver: true,
            state: State { from: Half::None, ..state },
            reply: Some(Request::Unsubscribed),
        },
        // A.3.3
        (Request::Subscribed, Half::Pending, _) => {
            Inbound { deliver: true, state: State { to: Half::Subscribed, ..state }, reply: None }
        }
        (Request::Subscribed, ..) => ignored,
        // A.3.4
        (Request::Unsubscribed, Half::None, _) => ignored,
        (Request::Unsubscribed, Half::Pending | Half::Subscribed, _) => {
            Inbound { deliver: true, state: State { to: Half::None, ..state }, reply: None }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: State = State { to: Half::None, from: Half::None };
    const N_O: State = State { to: Half::Pending, from: Half::None };
    const N_I: State = State { to: Half::None, from: Half::Pending };
    const N_OI: State = State { to: Half::Pending, from: Half::Pending };
    const T: State = State { to: Half::Subscribed, from: Half::None };
    const T_I: State = State { to: Half::Subscribed, from: Half::Pending };
    const F: State = State { to: Half::None, from: Half::Subscribed };
    const F_O: State = State { to: Half::Pending, from: Half::Subscribed };
    const B: State = State { to: Half::Subscribed, from: Half::Subscribed };

    fn check_outbound(request: Request, approved: bool, rows: &[(State, bool, State, bool)]) {
        assert_eq!(rows.len(), 9, "every state has a row");
        for &(before, route, state, approved_after) in rows {
            assert_eq!(
                outbound(before, approved, request),
                Outbound { route, state, approved: approved_after },
                "{request:?} in {before:?}, approved {approved}"
            );
        }
    }

    fn check_inbound(request: Request, approved: bool, rows: &[(State, bool, State, Option<Request>)]) {
        assert_eq!(rows.len(), 9, "every state has a row");
        for &(before, deliver, state, reply) in rows {
            assert_eq!(
                inbound(before, approved, request),
                Inbound { deliver, state, reply },
                "{request:?} in {before:?}, approved {approved}"
            );
        }
    }

    #[test]
    fn a_2_1_outbound_subscribe() {
        for approved in [false, true] {
            check_outbound(
                Request::Subscribe,
                approved,
                &[
                    (N, true, N_O, approved),
                    (N_O, true, N_O, approved),
                    (N_I, true, N_OI, approved),
                    (N_OI, true, N_OI, approved),
                    (T, true, T, approved),
                    (T_I, true, T_I, approved),
                    (F, true, F_O, approved),
                    (F_O, true, F_O, approved),
                    (B, true, B, approved),
                ],
            );
        }
    }

    #[test]
    fn a_2_2_outbound_unsubscribe() {
        for approved in [false, true] {
            check_outbound(
                Request::Unsubscribe,
                approved,
                &[
                    (N, true, N, approved),
                    (N_O, true, N, approved),
                    (N_I, true, N_I, approved),
                    (N_OI, true, N_I, approved),
                    (T, true, N, approved),
                    (T_I, true, N_I, approved),
                    (F, true, F, approved),
                    (F_O, true, F, approved),
                    (B, true, F, approved),
                ],
            );
        }
    }

    #[test]
    fn a_2_3_outbound_subscribed() {
        check_outbound(
            Request::Subscribed,
            false,
            &[
                (N, false, N, true),
                (N_O, false, N_O, true),
                (N_I, true, F, false),
                (N_OI, true, F_O, false),
                (T, false, T, true),
                (T_I, true, B, false),
                (F, false, F, false),
                (F_O, false, F_O, false),
                (B, false, B, false),
            ],
        );
    }

    #[test]
    fn a_2_4_outbound_unsubscribed() {
        for approved in [false, true] {
            check_outbound(
                Request::Unsubscribed,
                approved,
                &[
                    (N, false, N, false),
                    (N_O, false, N_O, false),
                    (N_I, true, N, false),
                    (N_OI, true, N_O, false),
                    (T, false, T, false),
                    (T_I, true, T, false),
                    (F, true, N, false),
                    (F_O, true, N_O, false),
                    (B, true, T, false),
                ],
            );
        }
    }

    #[test]
    fn a_3_1_inbound_subscribe() {
        let auto = Some(Request::Subscribed);
        check_inbound(
            Request::Subscribe,
            false,
            &[
                (N, true, N_I, None),
                (N_O, true, N_OI, None),
                (N_I, false, N_I, None),
                (N_OI, false, N_OI, None),
                (T, true, T_I, None),
                (T_I, false, T_I, None),
                (F, false, F, auto),
                (F_O, false, F_O, auto),
                (B, false, B, auto),
            ],
        );
    }

    #[test]
    fn a_3_1_note_1_and_3_4_2_inbound_subscribe_when_pre_approved() {
        let auto = Some(Request::Subscribed);
        check_inbound(
            Request::Subscribe,
            true,
            &[
                (N, false, F, auto),
                (N_O, false, F_O, auto),
                (N_I, false, N_I, None),
                (N_OI, false, N_OI, None),
                (T, false, B, auto),
                (T_I, false, T_I, None),
                (F, false, F, auto),
                (F_O, false, F_O, auto),
                (B, false, B, auto),
            ],
        );
    }

    #[test]
    fn a_3_2_inbound_unsubscribe() {
        let auto = Some(Request::Unsubscribed);
        for approved in [false, true] {
            check_inbound(
                Request::Unsubscribe,
                approved,
                &[
                    (N, false, N, None),
                    (N_O, false, N_O, None),
                    (N_I, true, N, auto),
                    (N_OI, true, N_O, auto),
                    (T, false, T, None),
                    (T_I, true, T, auto),
                    (F, true, N, auto),
                    (F_O, true, N_O, auto),
                    (B, true, T, auto),
                ],
            );
        }
    }

    #[test]
    fn a_3_3_inbound_subscribed() {
        for approved in [false, true] {
            check_inbound(
                Request::Subscribed,
                approved,
                &[
                    (N, false, N, None),
                    (N_O, true, T, None),
                    (N_I, false, N_I, None),
                    (N_OI, true, T_I, None),
                    (T, false, T, None),
                    (T_I, false, T_I, None),
                    (F, false, F, None),
                    (F_O, true, B, None),
                    (B, false, B, None),
                ],
            );
        }
    }

    #[test]
    fn a_3_4_inbound_unsubscribed() {
        for approved in [false, true] {
            check_inbound(
                Request::Unsubscribed,
                approved,
                &[
                    (N, false, N, None),
                    (N_O, true, N, None),
                    (N_I, false, N_I, None),
                    (N_OI, true, N_I, None),
                    (T, true, N, None),
                    (T_I, true, N_I, None),
                    (F, false, F, None),
                    (F_O, true, F, None),
                    (B, true, F, None),
                ],
            );
        }
    }

    #[test]
    fn a_1_states_are_shown_by_the_subscription_attribute() {
        for (state, shown) in [
            (N, "none"),
            (N_O, "none"),
            (N_I, "none"),
            (N_OI, "none"),
            (T, "to"),
            (T_I, "to"),
            (F, "from"),
            (F_O, "from"),
            (B, "both"),
        ] {
            assert_eq!(state.attribute(), shown, "{state:?}");
        }
    }
}
