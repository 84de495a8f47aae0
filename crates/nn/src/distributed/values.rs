//! Small values between ranks, over the CPU.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::world::failed;
use super::{DistributedError, World};

/// Small values up to so many bytes of JSON need one operation, larger ones two.
const SMALL: usize = 248;

/// What rank 0 says to the others.
#[derive(Serialize, Deserialize)]
enum Said<T> {
    Value(T),
    Error(String),
}

impl World {
    /// Small values of all ranks, by rank.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn gather<T: Serialize + DeserializeOwned>(
        &self,
        value: T,
    ) -> Result<Vec<T>, DistributedError> {
        if self.is_alone() {
            return Ok(vec![value]);
        }
        let bytes = serde_json::to_vec(&value).map_err(|error| unjson(&error))?;
        // A block for each rank: the length, and the value if it fits.
        let mut block = (bytes.len() as u64).to_le_bytes().to_vec();
        block.extend_from_slice(&bytes[..bytes.len().min(SMALL)]);
        let blocks = self.gather_bytes(&block, 8 + SMALL)?;
        let length = |block: &Vec<u8>| {
            let length = block.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length));
            usize::try_from(length).unwrap_or(usize::MAX)
        };
        let lengths: Vec<usize> = blocks.iter().map(length).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let (values, skip) = match longest <= SMALL {
            true => (blocks, 8),
            false => (self.gather_bytes(&bytes, longest)?, 0),
        };
        let read = |(value, length): (&Vec<u8>, usize)| {
            serde_json::from_slice(value.get(skip..skip + length).unwrap_or_default())
        };
        values
            .iter()
            .zip(lengths)
            .map(read)
            .collect::<Result<_, _>>()
            .map_err(|error| unjson(&error))
    }

    /// Bytes of all ranks, each filled up to `length`.
    fn gather_bytes(&self, bytes: &[u8], length: usize) -> Result<Vec<Vec<u8>>, DistributedError> {
        let mut own = bytes.to_vec();
        own.resize(length, 0);
        let own = Tensor::from_slice(&own);
        let columns = i64::try_from(length).unwrap_or(i64::MAX);
        let rows = i64::try_from(self.size()).unwrap_or(i64::MAX);
        let all = Tensor::zeros([rows, columns], (Kind::Uint8, Device::Cpu));
        self.start("a gather of values", &own, |group| group.all_gather(&all, &own))?.wait()?;
        let all = Vec::<u8>::try_from(all.view(-1)).map_err(failed("a gather of values"))?;
        Ok(all.chunks(length.max(1)).map(<[u8]>::to_vec).collect())
    }

    /// Whether the flag is set at any rank.
    ///
    /// # Errors
    /// If a rank is lost.
    pub fn any(&self, flag: bool) -> Result<bool, DistributedError> {
        Ok(self.gather(flag)?.contains(&true))
    }

    /// What `work` of rank 0 returns, at every rank. The others wait as long as rank 0 lives; if
    /// it fails, they end with [`DistributedError::OtherRank`] and its message, and rank 0 with
    /// its own error.
    ///
    /// # Errors
    /// If `work` fails, or a rank is lost.
    pub fn by_first<T, E>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        E: From<DistributedError> + std::fmt::Display,
    {
        if self.is_alone() {
            return work();
        }
        if self.is_first() {
            let result = work();
            let said = match &result {
                Ok(value) => Said::Value(value),
                Err(error) => Said::Error(error.to_string()),
            };
            let bytes = serde_json::to_vec(&said).map_err(|error| unjson(&error))?;
            let told = self.tell(&bytes);
            // Its own error says more than that of the connection.
            let value = result?;
            told?;
            return Ok(value);
        }
        match serde_json::from_slice(&self.hear()?).map_err(|error| unjson(&error))? {
            Said::Value(value) => Ok(value),
            Said::Error(message) => Err(DistributedError::OtherRank { rank: 0, message }.into()),
        }
    }

    /// Sends bytes of rank 0 to the others, who [`World::hear`].
    fn tell(&self, bytes: &[u8]) -> Result<(), DistributedError> {
        self.broadcast(&Tensor::from_slice(&[i64::try_from(bytes.len()).unwrap_or(i64::MAX)]), 0)?;
        self.broadcast(&Tensor::from_slice(bytes), 0)
    }

    fn hear(&self) -> Result<Vec<u8>, DistributedError> {
        let length = Tensor::zeros([1], (Kind::Int64, Device::Cpu));
        let what = "what rank 0 does alone";
        self.start(what, &length, |group| group.broadcast(&length, 0))?.wait_for_ever()?;
        let bytes = Tensor::zeros([length.int64_value(&[0])], (Kind::Uint8, Device::Cpu));
        self.broadcast(&bytes, 0)?;
        Vec::try_from(bytes).map_err(failed(what))
    }
}

fn unjson(error: &serde_json::Error) -> DistributedError {
    DistributedError::Failed { operation: "a gather of values", reason: error.to_string() }
}
