//! A connection to the store.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tch::TchError;

use crate::shim::TcpStore;

/// A connection with a thread of its own: a store whose host is stopped by SIGSTOP never answers,
/// and then the caller does not wait for it.
#[derive(Debug)]
pub(super) struct Client {
    tasks: Option<mpsc::Sender<Task>>,
    thread: Option<JoinHandle<()>>,
}

type Task = Box<dyn FnOnce(&TcpStore) + Send>;

impl Client {
    pub(super) fn new(store: TcpStore) -> Self {
        let (tasks, list) = mpsc::channel::<Task>();
        let thread = std::thread::spawn(move || {
            for task in list {
                task(&store);
            }
        });
        Self { tasks: Some(tasks), thread: Some(thread) }
    }

    /// What the operation returns; `None` if it does not end within the limit.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        limit: Duration,
        operation: impl FnOnce(&TcpStore) -> Result<T, TchError> + Send + 'static,
    ) -> Option<Result<T, TchError>> {
        let (answer, answers) = mpsc::channel();
        let task: Task = Box::new(move |store| {
            // Fails if the caller no longer waits.
            let _ = answer.send(operation(store));
        });
        self.tasks.as_ref()?.send(task).ok()?;
        answers.recv_timeout(limit).ok()
    }

    /// Closes the connection, and the store if it is served here.
    pub(super) fn close(&mut self) {
        self.tasks = None;
        let Some(thread) = self.thread.take() else { return };
        let begin = Instant::now();
        while !thread.is_finished() && begin.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(2));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}
