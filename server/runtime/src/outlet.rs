//! The one handle by which an actor is given work: a queue with credits in bytes and items.
//!
//! An actix mailbox gives no back-pressure (each clone of an address has a free slot), so
//! nothing is sent through one. What must hold: no more than the limit is ever owed to an
//! actor; credit returns only when the owner says that the bytes are gone ([`Inlet::release`]),
//! so what waits in a socket's buffer counts as well; once closed, every offer is refused with
//! the item given back, and nothing that was accepted is lost: the owner takes it out.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Items that a queue has room for from the first one on.
const FIRST_ROOM: usize = 12;

/// What an item costs in bytes of credit.
pub trait Weigh {
    /// Bytes of memory that the item holds, roughly.
    fn weight(&self) -> usize;
}

/// The answer to an offer.
#[derive(Debug)]
pub enum Offer<T> {
    /// It is in the queue.
    Accepted,
    /// The owner has no credit left; the item comes back.
    Full(T),
    /// The owner has closed its inlet; the item comes back.
    Gone(T),
}

impl<T> Offer<T> {
    /// True when the item is in the queue.
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted)
    }
}

struct State<T> {
    items: Vec<T>,
    /// Bytes in `items` and bytes taken but not yet released.
    bytes: usize,
    /// Items in `items` and items taken but not yet released.
    count: usize,
    waker: Option<Waker>,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    max_bytes: usize,
    max_items: usize,
    /// Written under the lock only, and read without it by those who look before they offer.
    closed: AtomicBool,
    /// See [`Outlet::set_hint`].
    hint: AtomicBool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code that can panic runs under the lock, and a torn state is impossible in any
        // case: each field is written whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// The sender's side. Cloning costs a reference count and adds no credit.
pub struct Outlet<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Outlet<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<T> std::fmt::Debug for Outlet<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Outlet")
    }
}

/// The owner's side.
pub struct Inlet<T> {
    shared: Arc<Shared<T>>,
}

/// Makes a queue that owes its owner at most `max_bytes` and `max_items`.
///
/// An item larger than `max_bytes` is accepted when nothing else is owed, so that a limit
/// below one stanza cannot stop an actor for good.
pub fn outlet<T>(max_bytes: usize, max_items: usize) -> (Outlet<T>, Inlet<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State { items: Vec::new(), bytes: 0, count: 0, waker: None }),
        max_bytes,
        max_items,
        closed: AtomicBool::new(false),
        hint: AtomicBool::new(false),
    });
    (Outlet { shared: shared.clone() }, Inlet { shared })
}

impl<T: Weigh> Outlet<T> {
    /// Offers an item. Never blocks; the owner is woken when it has seen all earlier items.
    pub fn offer(&self, item: T) -> Offer<T> {
        self.push(item, false)
    }

    /// Offers an item that must get through even when credit is exhausted: the few control
    /// messages of which each sender has at most one under way (close, unbind).
    pub fn offer_control(&self, item: T) -> Offer<T> {
        self.push(item, true)
    }

    fn push(&self, item: T, control: bool) -> Offer<T> {
        let weight = item.weight();
        let waker = {
            let mut state = self.shared.lock();
            if self.shared.is_closed() {
                return Offer::Gone(item);
            }
            let full = state.count >= self.shared.max_items
                || (state.bytes + weight > self.shared.max_bytes && state.bytes > 0);
            if full && !control {
                return Offer::Full(item);
            }
            state.bytes += weight;
            state.count += 1;
            if state.items.capacity() == 0 {
                // Under load a turn takes about ten: room for them at once, not in three steps.
                state.items.reserve(FIRST_ROOM);
            }
            state.items.push(item);
            // The owner registers its waker anew each time it has emptied the queue, so a
            // burst of offers costs one wake.
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Offer::Accepted
    }
}

impl<T> Outlet<T> {
    /// True once the owner has closed its inlet.
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }

    /// Lets the owner know something that spares it work, beside its items and in no order with them;
    /// false until it is set. What it means is between the two.
    pub fn set_hint(&self, hint: bool) {
        self.shared.hint.store(hint, Ordering::Relaxed);
    }

    /// True when both are handles of the same queue.
    pub fn same_queue(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl<T> Inlet<T> {
    /// Takes everything that waits; `Pending` when nothing does, with the waker registered.
    ///
    /// Taken items still count against the limit until they are released.
    pub fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Vec<T>> {
        let mut state = self.shared.lock();
        if state.items.is_empty() {
            match &state.waker {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                _ => state.waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        Poll::Ready(std::mem::take(&mut state.items))
    }

    /// Gives credit back for items that are done with.
    pub fn release(&mut self, bytes: usize, items: usize) {
        let mut state = self.shared.lock();
        state.bytes = state.bytes.saturating_sub(bytes);
        state.count = state.count.saturating_sub(items);
    }

    /// Closes the queue and returns what was still in it.
    pub fn close(&mut self) -> Vec<T> {
        let mut state = self.shared.lock();
        self.shared.closed.store(true, Ordering::Release);
        state.waker = None;
        std::mem::take(&mut state.items)
    }

    /// Closes the queue if nothing is owed; true when it did. With this an idle actor ends
    /// without losing an item that arrives at the same moment.
    pub fn close_if_idle(&mut self) -> bool {
        let mut state = self.shared.lock();
        if state.count > 0 {
            return false;
        }
        self.shared.closed.store(true, Ordering::Release);
        state.waker = None;
        true
    }

    /// What was last said with [`Outlet::set_hint`].
    pub fn hint(&self) -> bool {
        self.shared.hint.load(Ordering::Relaxed)
    }

    /// A handle to this queue.
    pub fn outlet(&self) -> Outlet<T> {
        Outlet { shared: self.shared.clone() }
    }
}

impl<T> Drop for Inlet<T> {
    fn drop(&mut self) {
        drop(self.close());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Debug, PartialEq)]
    struct Item(usize);
    impl Weigh for Item {
        fn weight(&self) -> usize {
            self.0
        }
    }

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn credit_is_owed_until_released() {
        let (outlet, mut inlet) = outlet(100, 10);
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(inlet.poll_take(&mut cx).is_pending());
        assert!(outlet.offer(Item(60)).is_accepted());
        assert!(outlet.offer(Item(40)).is_accepted());
        assert_eq!(count.0.load(Ordering::SeqCst), 1, "a burst wakes once");
        assert!(matches!(outlet.offer(Item(1)), Offer::Full(Item(1))));
        let Poll::Ready(items) = inlet.poll_take(&mut cx) else { panic!("nothing taken") };
        assert_eq!(items.len(), 2);
        assert!(matches!(outlet.offer(Item(1)), Offer::Full(_)), "taken is not released");
        inlet.release(60, 1);
        assert!(outlet.offer(Item(60)).is_accepted());
        assert!(matches!(outlet.offer(Item(1)), Offer::Full(_)));
        assert!(outlet.offer_control(Item(1)).is_accepted(), "control passes a full queue");
    }

    #[test]
    fn the_item_limit_holds_and_one_large_item_passes() {
        let (outlet, _inlet) = outlet(10, 2);
        assert!(outlet.offer(Item(1000)).is_accepted());
        assert!(matches!(outlet.offer(Item(1)), Offer::Full(_)));
        let (outlet, _inlet) = super::outlet(1000, 2);
        assert!(outlet.offer(Item(1)).is_accepted());
        assert!(outlet.offer(Item(1)).is_accepted());
        assert!(matches!(outlet.offer(Item(1)), Offer::Full(_)));
    }

    #[test]
    fn closing_gives_back_what_was_accepted_and_refuses_the_rest() {
        let (outlet, mut inlet) = outlet(100, 10);
        assert!(outlet.offer(Item(1)).is_accepted());
        assert!(!inlet.close_if_idle(), "not idle: something is owed");
        assert_eq!(inlet.close(), vec![Item(1)]);
        assert!(matches!(outlet.offer(Item(2)), Offer::Gone(Item(2))));
        let (outlet, inlet) = super::outlet::<Item>(100, 10);
        drop(inlet);
        assert!(outlet.is_closed());
    }
}
