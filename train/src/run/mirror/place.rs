//! Where a mirror lies: object storage, or a folder of this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use locations::{Access, Condition, Location, LocationError, Upload};
use runkit::files::AtomicFile;
use runkit::signals::StopFlag;

/// Bytes that are copied between two looks at the stop flag.
const PIECE: usize = 1 << 20;
/// The largest file that is read whole: manifests and marks have some hundred kilobytes.
const MOST_BYTES: u64 = 64 << 20;

/// The folder of a mirror.
#[derive(Debug, Clone)]
pub(super) struct Place {
    location: Location,
    stop: StopFlag,
}

/// A file of a mirror.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) bytes: u64,
    /// What tells one state of an object from another.
    version: Option<String>,
}

/// The files of a mirror by name, parts separated by `/`.
pub(super) type Listing = BTreeMap<String, Entry>;

/// What is copied to a mirror.
pub(super) enum Content<'a> {
    Bytes(&'a [u8]),
    /// So many bytes from the beginning of a file.
    File(&'a File, u64),
}

impl Content<'_> {
    /// How many bytes it has.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, length) => *length,
        }
    }

    /// Calls `take` for all bytes, piece by piece.
    fn pieces(
        &self,
        stop: &StopFlag,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        match self {
            Self::Bytes(bytes) => take(bytes),
            Self::File(file, length) => {
                let (mut start, mut piece) = (0, vec![0; PIECE]);
                while start < *length {
                    stop.check()?;
                    let left = usize::try_from(length - start).unwrap_or(PIECE).min(PIECE);
                    let piece = piece.get_mut(..left).unwrap_or_default();
                    file.read_exact_at(piece, start)?;
                    take(piece)?;
                    start += piece.len() as u64;
                }
                Ok(())
            }
        }
    }
}

impl Place {
    /// Understands `--mirror`, which must not lie in `run`, the folder of the run, nor hold it.
    ///
    /// # Errors
    /// If nothing can be written there.
    pub(super) fn parse(mirror: &Path, run: &Path) -> Result<Self> {
        let text = mirror.to_string_lossy();
        let location = match Location::parse(mirror)? {
            Location::Local(folder) => {
                let [inner, outer] = [folder.as_path(), run].map(whole);
                ensure!(
                    !inner.starts_with(&outer) && !outer.starts_with(&inner),
                    "--mirror {} and --out {} are one place; hint: name another folder, on another \
                     disk or machine",
                    mirror.display(),
                    run.display()
                );
                Location::Local(folder)
            }
            // With the slash it is a folder, whatever its name looks like.
            Location::Remote(_) if text.starts_with("s3://") => {
                Location::parse(Path::new(&format!("{}/", text.trim_end_matches('/'))))?
            }
            other => bail!(
                "--mirror {other}: expected s3://BUCKET/PREFIX or a folder of this machine, which are \
                 the places that can be written"
            ),
        };
        ensure!(
            !(location.is_remote() && location.is_pattern()),
            "--mirror {location}: expected one place, found a pattern"
        );
        Ok(Self { location, stop: runkit::signals::flag_of_process() })
    }

    /// The same place without what was known of its objects. `stop` ends what is done there.
    pub(super) fn anew(&self, stop: StopFlag) -> Self {
        let location = match self.location.is_remote() {
            true => self.location.clone().with_access(&Access::of_process().anew(stop.clone())),
            false => self.location.clone(),
        };
        Self { location, stop }
    }

    /// Its path or address, for messages.
    pub(super) fn path(&self) -> &Path {
        self.location.path()
    }

    /// The files that are there; none if nothing has the name.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub(super) fn list(&self) -> Result<Listing> {
        if self.location.as_local().is_some_and(|folder| !folder.exists()) {
            return Ok(Listing::new());
        }
        let found = locations::find(&self.location)?;
        ensure!(!found.is_file, "--mirror {}: expected a folder, found a file", self.location);
        let entry = |item: locations::Item| -> Result<(String, Entry)> {
            let file = locations::File::open(&item.location)?;
            let version = file.version().map(str::to_owned);
            Ok((item.name, Entry { bytes: file.len(), version }))
        };
        let is_ours =
            |item: &locations::Item| !runkit::files::is_temporary_name(Path::new(&item.name));
        found.items.into_iter().filter(is_ours).map(entry).collect()
    }

    /// A small file, whole.
    ///
    /// # Errors
    /// If it is not there or cannot be read.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let file = locations::File::open(&self.location.join(name)?)?;
        ensure!(
            file.len() <= MOST_BYTES,
            "{}: expected at most {MOST_BYTES} bytes, found {}",
            file.path().display(),
            file.len()
        );
        Ok(file.bytes(0..file.len()).map_err(|error| said(file.path(), error))?.to_vec())
    }

    /// Copies a file of the mirror to `to`. Returns its length and its BLAKE3 hash.
    ///
    /// # Errors
    /// If it cannot be read or written, or a signal stops it.
    pub(super) fn fetch(&self, name: &str, to: &Path) -> Result<(u64, String)> {
        let file = locations::File::open(&self.location.join(name)?)?;
        let (mut reader, mut hasher) = (file.reader(0..file.len()), blake3::Hasher::new());
        let (mut target, mut piece) = (AtomicFile::create(to)?, vec![0; PIECE]);
        loop {
            self.stop.check()?;
            let count = reader.read(&mut piece).map_err(|error| said(file.path(), error))?;
            let Some(bytes) = piece.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
            hasher.update(bytes);
            target.write_all(bytes).with_context(|| format!("cannot write {}", to.display()))?;
        }
        target.commit()?;
        runkit::fault::point("fetch");
        Ok((file.len(), hasher.finalize().to_hex().to_string()))
    }

    /// Puts a file under a name, in place of what `there` describes.
    ///
    /// # Errors
    /// If it cannot be written, or something else has come under the name.
    pub(super) fn put(
        &self,
        name: &str,
        there: Option<&Entry>,
        content: &Content<'_>,
    ) -> Result<()> {
        match self.location.as_local() {
            Some(folder) => {
                let path = folder.join(name);
                runkit::files::create_folder(path.parent().unwrap_or(folder))?;
                runkit::files::write_atomic(&path, |file| {
                    content.pieces(&self.stop, &mut |piece| file.write_all(piece))
                })?;
            }
            None => self.upload(name, there, content)?,
        }
        runkit::fault::point("mirror");
        Ok(())
    }

    fn upload(&self, name: &str, there: Option<&Entry>, content: &Content<'_>) -> Result<()> {
        let condition = match there.and_then(|there| there.version.clone()) {
            Some(version) => Condition::Replaces(version),
            None => Condition::Absent,
        };
        let target = self.location.join(name)?;
        let mut upload = Upload::begin(&target, &condition)?;
        content
            .pieces(&self.stop, &mut |piece| upload.write_all(piece))
            .map_err(|error| said(target.path(), error))?;
        Ok(upload.finish()?)
    }

    /// Whether a file of the mirror has this content.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn holds(&self, name: &str, content: &Content<'_>) -> Result<bool> {
        let file = match locations::File::open(&self.location.join(name)?) {
            Err(error) if io::Error::from(error.clone()).kind() == io::ErrorKind::NotFound => {
                return Ok(false);
            }
            file => file?,
        };
        if file.len() != content.len() {
            return Ok(false);
        }
        let (mut reader, mut is_equal) = (file.reader(0..file.len()), true);
        let compared = content.pieces(&self.stop, &mut |piece| {
            if is_equal {
                let mut other = vec![0; piece.len()];
                reader.read_exact(&mut other)?;
                is_equal = other == piece;
            }
            Ok(())
        });
        compared.map_err(|error| said(file.path(), error))?;
        Ok(is_equal)
    }

    /// Removes a file; one that is not there counts as removed.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        match self.location.as_local() {
            None => locations::remove(&self.location.join(name)?)?,
            Some(folder) => {
                let path = folder.join(name);
                runkit::run_folder::remove_file(&path)?;
                let above = path.ancestors().skip(1).take_while(|above| *above != folder);
                above.into_iter().try_for_each(runkit::run_folder::remove_if_empty)?;
            }
        }
        runkit::fault::point("unmirror");
        Ok(())
    }

    /// Removes the temporary files that killed starts left in a mirror of this machine.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub(super) fn remove_temporaries(&self, listing: &Listing) -> Result<()> {
        let Some(folder) = self.location.as_local() else { return Ok(()) };
        let above = |name: &String| folder.join(name).parent().map(Path::to_owned);
        let folders: BTreeSet<PathBuf> =
            listing.keys().filter_map(above).chain([folder.to_owned()]).collect();
        for folder in folders {
            runkit::files::remove_stale_temporaries(folder)?;
        }
        Ok(())
    }
}

/// An error of reading or writing a mirror, by what was behind it.
fn said(path: &Path, error: io::Error) -> anyhow::Error {
    match LocationError::behind(&error) {
        Some(cause) => cause.clone().into(),
        None => anyhow::Error::new(error).context(path.display().to_string()),
    }
}

/// The absolute path, links resolved as far as it exists.
fn whole(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = absolute.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    match existing {
        Some((above, resolved)) => match absolute.strip_prefix(above) {
            Ok(rest) if !rest.as_os_str().is_empty() => resolved.join(rest),
            _ => resolved,
        },
        None => absolute,
    }
}
