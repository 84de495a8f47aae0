//! Whether the hub responds at all.

use std::time::Duration;

use ureq::http::Method;

use crate::Settings;
use crate::http::{Attempts, Client, Problem};

impl Settings {
    /// Requests the front page of the hub once, without the token. Returns the HTTP status, or why
    /// it failed. `limit` bounds each wait: for the address, the connection and the response.
    pub fn reach(&self, limit: Duration) -> Result<u16, String> {
        let mut settings = self.clone();
        settings.token = None;
        let limits = &mut settings.network.limits;
        (limits.connect, limits.idle, limits.attempts) = (limit, limit, 1);
        let address = settings.endpoint.parse().map_err(|error| format!("{error}"))?;
        let (client, mut attempts) = (Client::new(&settings), Attempts::default());
        match client.request(&Method::HEAD, &address, None, &mut attempts, &mut |_, _, _| {}) {
            Ok(response) => Ok(response.status),
            Err(Problem::Stopped(signal)) => Err(format!("stopped by {signal}")),
            Err(
                Problem::Transient(reason)
                | Problem::Permanent(reason)
                | Problem::Certificate(reason),
            ) => Err(reason),
        }
    }
}
