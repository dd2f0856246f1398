//! How the actors of this crate are driven.
//!
//! What must hold: all work of an actor is done in the poll of its only spawned item, so that a wake costs one.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix::{Actor, ActorContext as _, ActorFuture};

/// The only item that an actor spawns: takes a turn whenever it is woken, and stops the actor when the turn
/// says that it was the last one.
pub(crate) struct Pump<F>(pub(crate) F);

impl<A, F> ActorFuture<A> for Pump<F>
where
    A: Actor<Context = actix::Context<A>>,
    F: FnMut(&mut A, &mut Context<'_>) -> Poll<()> + Unpin,
{
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        actor: &mut A,
        ctx: &mut A::Context,
        task: &mut Context<'_>,
    ) -> Poll<()> {
        let turn = (self.0)(actor, task);
        if turn.is_ready() {
            ctx.stop();
        }
        turn
    }
}
