//! Prefetch: a thread that reads and decodes items before they are asked for.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

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

/// As [`prefetch`], with `map` of each item computed on `ahead` threads, of several items at a
/// time. A thread of its own reads the items. The results come in the order of the items; with
/// `ahead` 0 each is computed when it is asked for, in this thread.
///
/// At most `ahead` results wait to be asked for, and as many are being computed.
pub fn prefetch_map<I, T, R>(
    items: I,
    ahead: usize,
    map: impl Fn(I::Item) -> T + Sync,
    consume: impl FnOnce(&mut dyn Iterator<Item = T>) -> R,
) -> R
where
    I: Iterator + Send,
    I::Item: Send,
    T: Send,
{
    if ahead == 0 {
        return consume(&mut items.map(map));
    }
    let map = &map;
    std::thread::scope(|scope| {
        let (work, todo) = sync_channel::<(I::Item, SyncSender<T>)>(0);
        let (queue, results) = sync_channel::<Receiver<T>>(ahead);
        let todo = Arc::new(Mutex::new(todo));
        // The workers own the receiver: if all of them panic, the reader ends.
        let workers: Vec<_> = (0..ahead)
            .map(|_| {
                let todo = Arc::clone(&todo);
                scope.spawn(move || {
                    loop {
                        let next = todo.lock().unwrap_or_else(PoisonError::into_inner).recv();
                        let Ok((item, result)) = next else { break };
                        // The consumer is gone if it returned early.
                        let _ignored = result.send(map(item));
                    }
                })
            })
            .collect();
        drop(todo);
        let reader = scope.spawn(move || {
            for item in items {
                let (result, receiver) = sync_channel(1);
                if queue.send(receiver).is_err() || work.send((item, result)).is_err() {
                    break;
                }
            }
        });
        // A result that does not come is that of a thread that panicked.
        let result = consume(&mut results.into_iter().map_while(|result| result.recv().ok()));
        for thread in std::iter::once(reader).chain(workers) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        result
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{prefetch, prefetch_map};

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

    #[test]
    fn mapped_items_come_in_order_whoever_is_first() {
        for ahead in [0, 1, 5] {
            let slow_first = |number: u64| {
                std::thread::sleep(std::time::Duration::from_micros(200 * (7 - number % 7)));
                number * number
            };
            let seen: Vec<u64> = prefetch_map(0..60, ahead, slow_first, |items| items.collect());
            assert!(seen.into_iter().eq((0..60).map(|number| number * number)), "{ahead}");
        }
        // A consumer that leaves early ends all threads.
        let first = prefetch_map(0..u64::MAX, 3, |number| number, |items| items.next());
        assert_eq!(first, Some(0));
    }

    #[test]
    fn so_many_are_mapped_at_the_same_time() {
        let barrier = std::sync::Barrier::new(3);
        let meet = |number: u32| {
            barrier.wait();
            number
        };
        let sum = prefetch_map(0..9, 3, meet, |items| items.sum::<u32>());
        assert_eq!(sum, 36);
    }

    #[test]
    #[should_panic(expected = "a bad image")]
    fn a_panic_of_every_worker_ends_the_reader_and_keeps_its_message() {
        let map = |number: u64| assert!(number == u64::MAX, "a bad image");
        prefetch_map(0..1_000, 2, map, |items| items.count());
    }
}
