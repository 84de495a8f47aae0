//! Whether the hub answers at all.

use std::time::Duration;

use ureq::http::Method;

use crate::Settings;
use crate::http::{Attempts, Client, Problem};

impl Settings {
    /// Asks the hub once for its front page, without the token, and returns the HTTP status. `limit`
    /// bounds each wait: for the address, the connection and the answer.
    ///
    /// # Errors
    /// Why there is no answer.
    pub fn reach(&self, limit: Duration) -> Result<u16, String> {
        let mut settings = self.clone();
        settings.token = None;
        let limits = &mut settings.network.limits;
        (limits.connect, limits.idle, limits.attempts) = (limit, limit, 1);
        let address = settings.endpoint.parse().map_err(|error| format!("{error}"))?;
        let client = Client::new(&settings);
        match client.ask(&Method::HEAD, &address, None, &mut Attempts::default(), &mut |_, _, _| {})
        {
            Ok(answer) => Ok(answer.status),
            Err(Problem::Stopped(signal)) => Err(format!("stopped by {signal}")),
            Err(
                Problem::Passing(reason) | Problem::Lasting(reason) | Problem::Certificate(reason),
            ) => Err(reason),
        }
    }
}
