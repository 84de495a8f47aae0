//! The networks of a run, loaded when they are needed and only those that are, and units through them.

use std::time::Instant;

use anyhow::Result;
use runkit::logging::{counted, tenths};
use runkit::progress::Progress;
use scorers::{DescribedScorers, ScorerSet};

use super::Run;
use super::batches::Source;
use super::captions::{CaptionFeatures, Groups, SharedFeatures};
use super::external::{Externals, Wants};
use super::pipeline::{self, Scoring, Task};
use super::sharing::Member;
use super::todo::{Todo, dealt};

/// The scorers that are loaded, if some are, and those outside of the process, once one is asked.
#[derive(Default)]
pub(super) struct Networks {
    loaded: Option<Loaded>,
    externals: Option<Externals>,
}

/// Some scorers of a run.
pub(super) struct Loaded {
    pub(super) set: ScorerSet,
    /// Of each scorer of the run whether it is one of them, or one outside that is asked with them.
    pub(super) scorers: Vec<bool>,
    /// Numbers per caption of each text tower.
    text_widths: Vec<usize>,
}

impl Networks {
    /// These scorers, in the place of others.
    pub(super) fn load(&mut self, run: &Run<'_>, scorers: &[bool]) -> Result<&Loaded> {
        let loaded = match self.loaded.take().filter(|loaded| loaded.scorers == scorers) {
            Some(loaded) => loaded,
            None => run.load(scorers)?,
        };
        Ok(self.loaded.insert(loaded))
    }

    /// These scorers, and those outside of the process, which are opened once. The work folder must
    /// be there.
    pub(super) fn ready(
        &mut self,
        run: &Run<'_>,
        scorers: &[bool],
    ) -> Result<(&Loaded, &mut Externals)> {
        let externals = match self.externals.take() {
            Some(externals) => externals,
            None => Externals::open(run)?,
        };
        let externals = self.externals.insert(externals);
        let loaded = match self.loaded.take().filter(|loaded| loaded.scorers == scorers) {
            Some(loaded) => loaded,
            None => run.load(scorers)?,
        };
        Ok((self.loaded.insert(loaded), externals))
    }
}

impl Run<'_> {
    pub(super) fn load(&self, scorers: &[bool]) -> Result<Loaded> {
        let loading = Instant::now();
        let mut wanted = self.scorers.clone();
        let mut kept = scorers.iter();
        wanted.scorer.retain(|_| kept.next().copied().unwrap_or(true));
        let mut hashes = self.hashes.clone();
        let described = DescribedScorers::of_hashed(&wanted, self.config.compute, &mut hashes)?;
        let text_widths = described.text_widths();
        let set = described.load()?;
        self.stop.check()?;
        let names: Vec<&str> = wanted.scorer.iter().map(|entry| entry.name.as_str()).collect();
        tracing::info!(
            pairs = self.plan.pairs(),
            images = self.plan.images(),
            captions = self.plan.captions.len(),
            scorers = %names.join(","),
            dtype = %set.manifest().dtype,
            loading_seconds = tenths(loading.elapsed()),
            "Loaded {} in {:.1} s",
            counted(names.len() as u64, "scorers"),
            loading.elapsed().as_secs_f64()
        );
        Ok(Loaded { set, scorers: scorers.to_vec(), text_widths })
    }

    /// Does the units of a group that this process gets and that have no part yet.
    pub(super) fn score_group(
        &self,
        number: usize,
        todo: &Todo,
        member: &Member<'_>,
        networks: &mut Networks,
    ) -> Result<()> {
        let group = &self.groups[number];
        if !todo.units.iter().any(|&unit| self.group_of(unit) == group) {
            return Ok(());
        }
        if group.is_read_alone() {
            let units = todo.units.iter().filter(|&&unit| self.group_of(unit) == group).count();
            let progress = Progress::new("reading", "units", units as u64);
            let tasks = self.tasks(number, todo, member, &progress);
            pipeline::read_alone(self.source(Wants::default()), tasks, &progress)?;
            progress.finish();
            return Ok(());
        }
        let (loaded, externals) = networks.ready(self, &group.scorers)?;
        let progress = Progress::new("scoring", "images", todo.images);
        progress.already_done(todo.images_done);
        let mut captions = self.captions(loaded)?;
        if !self.config.sharing.is_alone() {
            let chunks = Groups::of(&self.plan).chunks();
            let dealt = member.deal(&dealt("captions", number), chunks);
            captions.encode_dealt(dealt, member.has_store())?;
        }
        let tasks = self.tasks(number, todo, member, &progress);
        self.score_tasks(loaded, externals, captions, tasks, &progress)?;
        progress.finish();
        Ok(())
    }

    fn source(&self, wants: Wants) -> Source<'_> {
        let batch_size = self.config.batch_size;
        Source { plan: &self.plan, batch_size, wants, stop: self.stop }
    }

    pub(super) fn captions<'set>(
        &'set self,
        loaded: &'set Loaded,
    ) -> Result<CaptionFeatures<'set>> {
        // The features of other towers are others.
        let of_all = !loaded.scorers.contains(&false);
        let of = if of_all { String::new() } else { format!(" {:?}", loaded.set.names()) };
        let shared = SharedFeatures::new(
            self.output.captions(),
            &format!("{}{of}", self.fingerprint),
            Groups::of(&self.plan),
            loaded.text_widths.clone(),
        );
        let scratch = self.config.scratch();
        CaptionFeatures::new(&self.plan, &loaded.set, &scratch, Some(shared), self.stop)
    }

    pub(super) fn score_tasks(
        &self,
        loaded: &Loaded,
        externals: &mut Externals,
        mut captions: CaptionFeatures<'_>,
        tasks: impl Iterator<Item = Result<Task>> + Send,
        progress: &Progress,
    ) -> Result<()> {
        let started = Instant::now();
        let Loaded { set, scorers, .. } = loaded;
        let source = self.source(externals.wants(scorers));
        let mut scoring =
            Scoring { source, set, externals, wanted: scorers, progress, failed_images: 0 };
        pipeline::score(&mut scoring, &mut captions, tasks)?;
        tracing::debug!(captions = captions.encoded(), "captions were encoded here");
        // On a GPU the networks run beside the host, whose time says nothing about them.
        if !set.compute().device.is_cuda() {
            let (networks, wall) =
                (set.network_time().as_secs_f64(), started.elapsed().as_secs_f64());
            let percent = 100.0 * networks / wall;
            tracing::info!("networks: {networks:.2} s of {wall:.2} s ({percent:.0} %)");
        }
        Ok(())
    }
}
