//! Prefetch: a thread that reads and decodes items before they are asked for.

use std::sync::mpsc::sync_channel;

/// Hands `items` to `consume`. With `ahead` above 0 a thread of its own produces them, at most
/// `ahead` of them before they are asked for; with 0 each is produced when it is asked for, in this
/// thread.
///
/// Producing ahead pays if the consumer waits for another device, such as a GPU or a disk. On a CPU
/// the producer and libtorch's threads would compete for the same cores, so callers there pass 0.
/// The items and their order are the same either way.
///
/// What `consume` gets may be prefetched again: then two stages work beside the consumer.
///
/// If `consume` returns early, the thread ends after the item it is at. A panic of the thread is a
/// panic here.
///
/// ```
/// use runkit::prefetch::prefetch;
/// for ahead in [0, 2] {
///     let squares = (0..5).map(|number| number * number);
///     assert_eq!(prefetch(squares, ahead, |squares| squares.sum::<u32>()), 30);
/// }
/// ```
#[doc(alias = "data loader")]
pub fn prefetch<I, R>(
    items: I,
    ahead: usize,
    consume: impl FnOnce(&mut (dyn Iterator<Item = I::Item> + Send)) -> R,
) -> R
where
    I: Iterator + Send,
    I::Item: Send,
{
    let mut items = items;
    if ahead == 0 {
        return consume(&mut items);
    }
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(ahead);
        let producer = scope.spawn(move || {
            for item in items {
                // The receiver is gone if the consumer returned early.
                if sender.send(item).is_err() {
                    break;
                }
            }
        });
        let result = consume(&mut receiver.into_iter());
        // A panic keeps its message; the scope would replace it by its own.
        if let Err(panic) = producer.join() {
            std::panic::resume_unwind(panic);
        }
        result
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::prefetch;

    #[test]
    fn items_come_in_order_with_and_without_a_thread() {
        for ahead in [0, 1, 7] {
            let seen: Vec<u32> = prefetch(0..100, ahead, |items| items.collect());
            assert!(seen.iter().copied().eq(0..100), "{ahead}");
        }
    }

    #[test]
    fn at_most_so_many_are_produced_ahead() {
        let made = AtomicUsize::new(0);
        let items = (0..1_000).inspect(|_| {
            made.fetch_add(1, Ordering::SeqCst);
        });
        prefetch(items, 3, |items| assert_eq!(items.next(), Some(0)));
        // One consumed, three in the channel, one that waits to be sent.
        assert!(made.load(Ordering::SeqCst) <= 5, "{made:?}");
    }

    #[test]
    fn an_error_ends_both_sides() {
        let items = (0..u64::MAX).map(|number| if number < 3 { Ok(number) } else { Err("no") });
        let sum = prefetch(items, 2, |items| items.sum::<Result<u64, &str>>());
        assert_eq!(sum, Err("no"));
    }

    #[test]
    #[should_panic(expected = "a bad image")]
    fn a_panic_keeps_its_message() {
        let items = (0..3).map(|number| assert!(number < 2, "a bad image"));
        prefetch(items, 1, |items| items.count());
    }
}
