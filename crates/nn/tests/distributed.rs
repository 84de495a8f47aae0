//! Ranks in processes of their own: this program starts itself again, as one rank of a world.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nn::distributed::{Deal, DistributedError, World};
use runkit::launch::Launch;
use tch::{Device, Kind, Tensor};
use testkit::{Folder, Ranks, Run, program, wait_until};

const TASK: &str = "DISTRIBUTED_TASK";
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(2);

/// This program as a rank that does the task.
fn command(task: &str) -> Command {
    let path = std::env::current_exe().unwrap();
    let arguments = ["rank_of_another_test", "--exact", "--nocapture", "--test-threads=1"];
    let mut command = program(path.to_str().unwrap(), arguments);
    command.env(TASK, task);
    command
}

fn run(world: usize, task: &str) -> Vec<Run> {
    Ranks::start(world, |_| command(task)).finish_within(LONG)
}

/// The lines that a rank printed.
fn results(run: &Run) -> Vec<&str> {
    run.stdout.lines().filter_map(|line| line.split_once("rank> ")).map(|line| line.1).collect()
}

#[test]
fn rank_of_another_test() {
    let Ok(task) = std::env::var(TASK) else { return };
    tch::set_num_threads(1);
    if let Err(error) = do_task(&task, &Launch::from_environment().unwrap()) {
        eprintln!("error: {error}");
        #[expect(clippy::exit, reason = "the exit code of a program")]
        std::process::exit(1);
    }
}

fn signal_self(name: &str) {
    Command::new("kill").args(["-s", name, &std::process::id().to_string()]).status().unwrap();
}

fn floats(seed: i64, count: i64) -> Tensor {
    let steps = Tensor::arange(count, (Kind::Float, Device::Cpu));
    (steps * (0.37 + seed as f64)).sin() / 3.0
}

fn bits(tensor: &Tensor) -> String {
    let numbers = Vec::<f32>::try_from(tensor.to_kind(Kind::Float).view(-1)).unwrap();
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    format!("{} {:?}", runkit::text::quoted(&blake3::hash(&bytes).to_hex()), &numbers[..2])
}

fn do_task(task: &str, launch: &Launch) -> Result<(), DistributedError> {
    let limit = if task.starts_with("short") { SHORT } else { LONG };
    if task == "deal" {
        let Deal::Store(store) = Deal::choose(None, launch, limit)? else { panic!("no store") };
        for unit in Deal::Store(store).units("batches", 100) {
            println!("rank> {}", unit?);
        }
        return Ok(());
    }
    let device = if task == "mixed" && launch.rank == 1 { Device::Cuda(0) } else { Device::Cpu };
    let world = World::join(launch, device, limit)?;
    let (rank, last) = (world.rank(), world.size() - 1);
    let one = Tensor::ones([1000], (Kind::Float, Device::Cpu));
    let is_last = rank == last;
    // A first operation, so that all are connected and well.
    world.all_reduce(&one)?;
    match task {
        "all" => all_operations(&world)?,
        "first-fails" => {
            let work = || Err(DistributedError::Differ("weights differ".to_owned()));
            world.by_first::<u32, DistributedError>(work)?;
        }
        "dies" => {
            if is_last {
                signal_self("KILL");
            }
            world.all_reduce(&one)?;
        }
        "dies-in-barrier" => {
            if is_last {
                std::thread::sleep(Duration::from_millis(300));
                signal_self("KILL");
            }
            world.barrier()?;
        }
        "first-dies" => {
            let work = || -> Result<(), DistributedError> {
                signal_self("KILL");
                Ok(())
            };
            world.by_first(work)?;
        }
        "short-stops" | "short-stops-in-barrier" => {
            if is_last {
                signal_self("STOP");
            }
            match task {
                "short-stops" => world.all_reduce(&one)?,
                _ => world.barrier()?,
            }
        }
        "short-first-stops" => {
            if rank == 0 {
                signal_self("STOP");
            }
            world.all_reduce(&one)?;
        }
        "short-hangs" => {
            if is_last {
                std::thread::sleep(LONG);
            }
            world.any(false)?;
        }
        "short-slow" => {
            // Three times the limit.
            world.by_first(|| {
                std::thread::sleep(SHORT * 3);
                Ok::<_, DistributedError>(())
            })?;
            println!("rank> done");
        }
        "words" => {
            if rank == 0 {
                let error = "pair 7: the image is broken";
                world.leave_words(error);
                return Err(DistributedError::Differ(error.to_owned()));
            }
            world.all_reduce(&one)?;
        }
        "ends" => {
            if !is_last {
                world.all_reduce(&one)?;
            }
        }
        "restart" => {
            let store = world.store().unwrap();
            let old = store.get("mark")?;
            world.barrier()?;
            store.set("mark", b"x")?;
            let attempt = std::env::var("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
            println!("rank> attempt {attempt} finds {old:?}");
            if is_last && attempt == "0" && std::env::var("DIES").is_ok() {
                signal_self("KILL");
            }
            world.barrier()?;
        }
        other => panic!("no task {other}"),
    }
    Ok(())
}

fn all_operations(world: &World) -> Result<(), DistributedError> {
    let (rank, size) = (world.rank() as i64, world.size() as i64);
    for (kind, count) in [(Kind::Float, 100_003), (Kind::BFloat16, 4099), (Kind::Double, 3)] {
        let sum = floats(rank, count).to_kind(kind);
        world.all_reduce(&sum)?;
        println!("rank> sum {}", bits(&sum));
    }
    // A leaf, three sums at once, and channels last in memory.
    let leaf = floats(rank, 24).view([1, 2, 3, 4]).set_requires_grad(true);
    let last = floats(rank, 24).view([1, 3, 4, 2]).permute([0, 3, 1, 2]);
    let third = Tensor::full([5], rank + 1, (Kind::Int64, Device::Cpu));
    let pending = [&leaf, &last, &third].map(|tensor| world.start_all_reduce(tensor));
    for pending in pending {
        pending?.wait()?;
    }
    assert_eq!(third.int64_value(&[4]), size * (size + 1) / 2);
    println!("rank> leaf {} {}", bits(&leaf), bits(&last.contiguous()));
    let holes = floats(rank, 10).slice(0, 0, 10, 2);
    assert!(matches!(world.all_reduce(&holes), Err(DistributedError::Failed { .. })));

    let sent = floats(rank, 1000);
    world.broadcast(&sent, 1)?;
    assert_eq!(sent, floats(1, 1000));

    let rows = Tensor::zeros([size, 7], (Kind::Float, Device::Cpu));
    world.all_gather(&rows, &floats(rank, 7))?;
    for row in 0..size {
        assert_eq!(rows.get(row), floats(row, 7));
    }
    let part = Tensor::zeros([7], (Kind::Float, Device::Cpu));
    let parts = Tensor::arange(size * 7, (Kind::Float, Device::Cpu)).view([size, 7]);
    world.reduce_scatter(&part, &parts)?;
    assert_eq!(part, parts.get(rank) * size);

    for length in [0, 3, 245, 246, 247, 248, 5000] {
        let word = |rank: i64| "x".repeat(length + rank as usize);
        let words = world.gather((rank, word(rank)))?;
        assert_eq!(words, (0..size).map(|rank| (rank, word(rank))).collect::<Vec<_>>());
    }
    assert!(!world.any(false)?);
    assert!(world.any(rank == size - 1)?);
    let long: String = world.by_first(|| Ok::<_, DistributedError>("first".repeat(100)))?;
    assert_eq!(long, "first".repeat(100));
    world.barrier()
}

#[test]
fn operations_give_all_ranks_the_same_bits_each_time() {
    for world in [2, 3] {
        let runs = run(world, "all");
        let again = run(world, "all");
        let first = results(&runs[0]);
        assert_eq!(first.len(), 4, "{runs:#?}");
        for run in runs.iter().chain(&again) {
            assert_eq!(run.code(), Some(0), "{run:#?}");
            assert_eq!(results(run), first);
        }
    }
}

#[test]
fn a_world_of_one_rank_needs_no_store() {
    let world = World::join(&Launch::ALONE, Device::Cpu, LONG).unwrap();
    let sum = floats(0, 10);
    world.all_reduce(&sum).unwrap();
    world.broadcast(&sum, 0).unwrap();
    assert_eq!(sum, floats(0, 10));
    let copy = Tensor::zeros([1, 10], (Kind::Float, Device::Cpu));
    world.all_gather(&copy, &sum).unwrap();
    assert_eq!(copy.get(0), sum);
    assert_eq!(world.gather(3).unwrap(), [3]);
    assert!(world.any(true).unwrap());
    world.barrier().unwrap();
    let deal = Deal::choose(None, &Launch::ALONE, LONG).unwrap();
    assert_eq!(deal.units("a", 3).map(Result::unwrap).collect::<Vec<_>>(), [0, 1, 2]);
    let deal = Deal::choose(Some("1/3".parse().unwrap()), &Launch::ALONE, LONG).unwrap();
    assert_eq!(deal.units("a", 6).map(Result::unwrap).collect::<Vec<_>>(), [1, 4]);
    let launch = Launch { rank: 1, world: 2, ..Launch::ALONE };
    let deal = Deal::choose(None, &launch, LONG).unwrap();
    assert_eq!(deal.units("a", 5).map(Result::unwrap).collect::<Vec<_>>(), [1, 3]);
    let error = World::join(&launch, Device::Cpu, LONG).unwrap_err();
    assert!(error.to_string().contains("MASTER_ADDR"), "{error}");
}

#[test]
fn the_error_of_rank_0_ends_the_others() {
    let runs = run(3, "first-fails");
    assert!(runs[0].stderr.contains("error: weights differ"), "{runs:#?}");
    for run in &runs[1..] {
        assert!(run.stderr.contains("error: rank 0: weights differ"), "{runs:#?}");
    }
}

#[test]
fn the_last_words_of_a_rank_reach_the_others() {
    let runs = run(3, "words");
    for run in &runs[1..] {
        assert!(run.stderr.contains("error: rank 0: pair 7: the image is broken"), "{runs:#?}");
    }
}

#[test]
fn every_survivor_names_a_killed_rank_within_seconds() {
    for (world, task) in [(2, "dies"), (3, "dies"), (3, "dies-in-barrier")] {
        let begin = Instant::now();
        let runs = run(world, task);
        let elapsed = begin.elapsed();
        let named = format!("error: rank {} of {world} has died", world - 1);
        for run in &runs[..world - 1] {
            assert!(run.stderr.contains(&named), "{task}: {runs:#?}");
            assert_eq!(run.code(), Some(1));
        }
        assert!(runs[world - 1].was_killed());
        assert!(elapsed < Duration::from_secs(20), "{task}: {elapsed:?}");
    }
}

#[test]
fn the_death_of_rank_0_is_named_though_it_serves_the_store() {
    let runs = run(3, "first-dies");
    for run in &runs[1..] {
        assert!(run.stderr.contains("error: rank 0 of 3 has died"), "{runs:#?}");
    }
}

#[test]
fn a_rank_that_ends_early_is_named() {
    let runs = run(3, "ends");
    for run in &runs[..2] {
        let named = "error: rank 2 of 3 has ended before an all-reduce";
        assert!(run.stderr.contains(named), "{runs:#?}");
    }
}

/// Runs ranks whose others must end by themselves; `stays` never does.
fn run_with_one_that_stays(world: usize, task: &str, stays: usize) -> Vec<Run> {
    let mut ranks = Ranks::start(world, |_| command(task));
    for rank in (0..world).filter(|&rank| rank != stays) {
        wait_until("the others have ended", || ranks.rank(rank).has_ended());
    }
    ranks.rank(stays).signal("KILL");
    ranks.finish_within(LONG)
}

#[test]
fn a_stopped_rank_is_named_after_the_limit() {
    for task in ["short-stops", "short-stops-in-barrier"] {
        let runs = run_with_one_that_stays(3, task, 2);
        for run in &runs[..2] {
            assert!(run.stderr.contains("error: rank 2 of 3 has died or is stopped"), "{runs:#?}");
        }
    }
    let runs = run_with_one_that_stays(3, "short-first-stops", 0);
    for run in &runs[1..] {
        assert!(run.stderr.contains("error: rank 0 of 3 does not answer for 2 s"), "{runs:#?}");
    }
}

#[test]
fn a_rank_that_hangs_is_named_after_the_limit() {
    let runs = run_with_one_that_stays(3, "short-hangs", 2);
    let named = "error: rank 2 of 3 hangs: it lives and has not come to a gather of values in 2 s";
    assert!(runs[..2].iter().any(|run| run.stderr.contains(named)), "{runs:#?}");
    // The second to notice may meet the end of the first instead.
    for (run, other) in [(&runs[0], 1), (&runs[1], 0)] {
        let ended = format!("error: rank {other} of 3 has ended before a gather of values");
        assert!(run.stderr.contains(named) || run.stderr.contains(&ended), "{runs:#?}");
    }
}

#[test]
fn ranks_wait_for_rank_0_beyond_the_limit() {
    for run in run(2, "short-slow") {
        assert_eq!(results(&run), ["done"], "{run:#?}");
    }
}

#[test]
fn a_rank_that_does_not_start_is_named() {
    let mut started = 0;
    let runs = Ranks::start(3, |rank| {
        started += 1;
        match rank {
            2 => program("/bin/true", [""; 0]),
            _ => command("short-slow"),
        }
    });
    let runs = runs.finish_within(LONG);
    for run in &runs[..2] {
        assert!(run.stderr.contains("error: rank 2 of 3 has not started within 2 s"), "{runs:#?}");
    }
}

#[test]
fn a_store_that_nobody_serves_or_that_has_no_port_is_named() {
    let runs = Ranks::start(2, |rank| match rank {
        0 => program("/bin/true", [""; 0]),
        _ => command("short-slow"),
    });
    let runs = runs.finish_within(LONG);
    let named = "error: rank 0, which serves the store at 127.0.0.1:";
    assert!(runs[1].stderr.contains(named), "{runs:#?}");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let runs = Ranks::start_at(port, 2, |rank| match rank {
        0 => command("short-slow"),
        _ => program("/bin/true", [""; 0]),
    });
    let runs = runs.finish_within(LONG);
    let named = format!("cannot serve at 127.0.0.1:{port}");
    assert!(runs[0].stderr.contains(&named), "{runs:#?}");
    assert!(runs[0].stderr.contains("hint: set MASTER_ADDR"), "{runs:#?}");
}

#[test]
fn ranks_on_different_kinds_of_devices_are_refused() {
    for run in run(2, "mixed") {
        assert!(run.stderr.contains("rank 0 is on the CPU and rank 1 on a GPU"), "{run:#?}");
    }
}

#[test]
fn each_unit_is_dealt_once() {
    let runs = run(3, "deal");
    let mut units = BTreeSet::new();
    for run in &runs {
        let own: Vec<u64> = results(run).iter().map(|unit| unit.parse().unwrap()).collect();
        assert!(own.is_sorted());
        for unit in own {
            assert!(units.insert(unit), "unit {unit} was dealt twice");
        }
    }
    assert_eq!(units, (0..100).collect());
}

/// torchrun of the Python environment whose libtorch this program was built with.
fn torchrun() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let environment = std::env::var_os("VIRTUAL_ENV").map(|folder| Path::new(&folder).join("bin"));
    let folders = environment.into_iter().chain(std::env::split_paths(&folders));
    let found = folders.map(|folder| folder.join("torchrun")).find(|path| path.is_file());
    if found.is_none() {
        println!("skipped: no torchrun in VIRTUAL_ENV or PATH");
    }
    found
}

#[test]
fn torchrun_starts_ranks_and_restarts_them_with_an_empty_store() {
    let Some(torchrun) = torchrun() else { return };
    let folder = Folder::new();
    let run = |script: String, dies: bool| {
        let port = testkit::free_port();
        let endpoint = format!("--rdzv-endpoint=127.0.0.1:{port}");
        let arguments = ["--nproc-per-node=2", "--max-restarts=1", "--rdzv-backend=c10d"];
        let mut command = program(torchrun.to_str().unwrap(), arguments);
        command.args([&endpoint, "--no-python", "sh", "-c", &script]);
        command.env(TASK, "restart").current_dir(folder.path("."));
        if dies {
            command.env("DIES", "1");
        }
        Run::of(&mut command)
    };
    let exe = std::env::current_exe().unwrap();
    let once = format!("{} rank_of_another_test --exact --nocapture", exe.display());
    let restarted = run(format!("exec {once}"), true);
    assert_eq!(restarted.code(), Some(0), "{restarted:#?}");
    let found = results(&restarted);
    assert!(found.iter().all(|line| line.ends_with("finds None")), "{restarted:#?}");
    let again = found.iter().filter(|line| line.starts_with("attempt 1")).count();
    assert!(again == 2 && found.len() > 2, "{restarted:#?}");
    // Two programs one after another in one launch.
    let twice = run(format!("{once} && {once}"), false);
    assert_eq!(twice.code(), Some(0), "{twice:#?}");
    let found = results(&twice);
    assert_eq!(found, ["attempt 0 finds None"; 4], "{twice:#?}");
}
