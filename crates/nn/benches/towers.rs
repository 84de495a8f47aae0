//! How close the towers come to a plain matrix product, at published sizes and with random weights.
//!
//! ```text
//! cargo bench -p balanceddpo-nn --bench towers -- [full] [f32|bf16] [batch=8] [device=auto] [threads=N] [clock=cpu]
//! ```
//!
//! `clock=cpu` with `threads=1` counts processor time instead of time: for a busy machine (Linux).
//!
//! Without `full`, four blocks stand for all: the rate of a network of equal blocks does not depend
//! on their number. `rate` counts the operations that are done, so the last block, which reads one
//! token only, counts as such.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a bench")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nn::clip::{ClipConfig, ClipLayout, ClipModel, ClipParts, ClipSource};
use nn::device::{self, Precision, inference};
use nn::weights::Weights;
use tch::{Cuda, Device, Kind, Tensor};

const ROUNDS: usize = 7;
static CPU_CLOCK: AtomicBool = AtomicBool::new(false);

struct Arguments {
    full: bool,
    precisions: Vec<Precision>,
    batch: i64,
    device: Device,
}

fn main() {
    device::reuse_memory();
    let arguments = arguments();
    tch::manual_seed(0);
    println!("device {:?}, {} threads", arguments.device, device::threads());
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for name in ["ViT-H-14", "ViT-L-14-quickgelu"] {
        let mut config = ClipConfig::published(name).unwrap();
        if !arguments.full {
            (config.vision.layers, config.text.layers) = (4, 4);
        }
        let file = folder.path().join(name);
        write_random(&config, &file);
        let weights = Weights::open(&file).unwrap();
        for precision in &arguments.precisions {
            measure(name, &config, &weights, *precision, &arguments);
        }
        fs_err::remove_file(&file).unwrap();
    }
}

fn arguments() -> Arguments {
    let mut arguments = Arguments {
        full: false,
        precisions: vec![Precision::F32, Precision::Bf16],
        batch: 8,
        device: device::parse("auto").unwrap(),
    };
    // cargo passes --bench itself.
    for argument in std::env::args().skip(1).filter(|argument| argument != "--bench") {
        match argument.split_once('=') {
            None if argument == "full" => arguments.full = true,
            None => arguments.precisions = vec![argument.parse().unwrap()],
            Some(("batch", batch)) => arguments.batch = batch.parse().unwrap(),
            Some(("device", name)) => arguments.device = device::parse(name).unwrap(),
            Some(("clock", "cpu")) => CPU_CLOCK.store(true, Ordering::Relaxed),
            Some(("threads", count)) => device::set_threads(count.parse().unwrap()),
            Some(_) => panic!("unknown argument {argument}"),
        }
    }
    arguments
}

fn measure(
    name: &str,
    config: &ClipConfig,
    weights: &Weights,
    precision: Precision,
    arguments: &Arguments,
) {
    let (device, batch) = (arguments.device, arguments.batch);
    let start = Instant::now();
    let model = ClipModel::load(
        ClipSource { config, layout: ClipLayout::OpenClip, weights },
        ClipParts::BOTH,
        device,
        precision,
    )
    .unwrap();
    println!("\n{name} {precision}: loaded in {:.2} s", start.elapsed().as_secs_f64());

    let side = config.vision.image_size;
    let pixels = Tensor::randn([batch, 3, side, side], (Kind::Float, device));
    let (vision, text) = (model.vision.unwrap(), model.text.unwrap());
    let length = 20;
    let tokens = Tensor::randint(49_000, [4 * batch, 77], (Kind::Int64, Device::Cpu));
    let ends = Tensor::full([4 * batch], length - 1, (Kind::Int64, Device::Cpu));

    // The machine's own rate, before and after, since machines change their pace.
    let plain = || {
        let square = product(2048, 2048, 2048, precision, device);
        square.max(product(2056, 1280, 5120, precision, device))
    };
    let mut rate = plain();
    let images = seconds(device, || drop(vision.forward(&pixels)));
    let texts = seconds(device, || drop(text.forward(&tokens, &ends)));
    rate = rate.max(plain());
    println!("  matrix product    {rate:7.0} GFLOP/s");

    let v = &config.vision;
    let count = 2.0 * (v.grid() * v.grid() * 3 * v.patch_size * v.patch_size * v.width) as f64
        + blocks(v.layers, v.tokens(), v.width, v.mlp_width);
    report("images", batch, count, images, rate);
    let t = &config.text;
    report("texts of 20", 4 * batch, blocks(t.layers, length, t.width, t.mlp_width), texts, rate);
}

/// Operations of all blocks for one sequence, the last one for one token.
fn blocks(layers: i64, length: i64, width: i64, mlp_width: i64) -> f64 {
    let (length, width, wide) = (length as f64, width as f64, mlp_width as f64);
    let per_token = 2.0 * (4.0 * width * width + 2.0 * width * wide) + 4.0 * length * width;
    let last = 2.0 * 2.0 * length * width * width
        + 2.0 * (2.0 * width * width + 2.0 * width * wide)
        + 4.0 * length * width;
    (layers - 1) as f64 * length * per_token + last
}

fn report(what: &str, items: i64, operations_each: f64, seconds: f64, plain: f64) {
    let rate = operations_each * items as f64 / seconds / 1e9;
    println!(
        "  {what:<12} {:8.2} a second, {rate:7.0} GFLOP/s, {:3.0} % of the product",
        items as f64 / seconds,
        100.0 * rate / plain
    );
}

fn product(rows: i64, inner: i64, columns: i64, precision: Precision, device: Device) -> f64 {
    let options = (precision.kind(), device);
    let (left, right) =
        (Tensor::randn([rows, inner], options), Tensor::randn([columns, inner], options));
    let time = inference(|| seconds(device, || drop(left.linear(&right, None::<&Tensor>))));
    2.0 * (rows * inner * columns) as f64 / time / 1e9
}

/// The fastest of several rounds: what others do on the machine only ever adds.
fn seconds(device: Device, mut body: impl FnMut()) -> f64 {
    let wait = || {
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
    };
    body();
    (0..ROUNDS)
        .map(|_| {
            wait();
            let start = clock();
            body();
            wait();
            (clock() - start).as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

/// Time, or with `clock=cpu` what this thread has had of a processor.
fn clock() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    if CPU_CLOCK.load(Ordering::Relaxed) {
        let text = fs_err::read_to_string("/proc/thread-self/schedstat").unwrap();
        Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
    } else {
        START.elapsed()
    }
}

/// A checkpoint of random numbers in open_clip's layout.
fn write_random(config: &ClipConfig, file: &Path) {
    let (vision, text) = (&config.vision, &config.text);
    let mut shapes: BTreeMap<String, Vec<i64>> = BTreeMap::from([
        ("visual.conv1.weight".into(), vec![vision.width, 3, vision.patch_size, vision.patch_size]),
        ("visual.class_embedding".into(), vec![vision.width]),
        ("visual.positional_embedding".into(), vec![vision.tokens(), vision.width]),
        ("visual.proj".into(), vec![vision.width, config.embed_dim]),
        ("token_embedding.weight".into(), vec![text.vocabulary_size, text.width]),
        ("positional_embedding".into(), vec![text.context_length, text.width]),
        ("text_projection".into(), vec![text.width, config.embed_dim]),
    ]);
    let mut layer = |name: String, weight: Vec<i64>| {
        shapes.insert(format!("{name}.bias"), weight[..1].to_vec());
        shapes.insert(format!("{name}.weight"), weight);
    };
    layer("visual.ln_pre".into(), vec![vision.width]);
    layer("visual.ln_post".into(), vec![vision.width]);
    layer("ln_final".into(), vec![text.width]);
    let towers = [
        ("visual.transformer", vision.layers, vision.width, vision.mlp_width),
        ("transformer", text.layers, text.width, text.mlp_width),
    ];
    for (prefix, layers, width, wide) in towers {
        for index in 0..layers {
            let block = format!("{prefix}.resblocks.{index}");
            layer(format!("{block}.ln_1"), vec![width]);
            layer(format!("{block}.ln_2"), vec![width]);
            layer(format!("{block}.attn.out_proj"), vec![width, width]);
            layer(format!("{block}.mlp.c_fc"), vec![wide, width]);
            layer(format!("{block}.mlp.c_proj"), vec![width, wide]);
        }
    }
    for (prefix, layers, width, _) in towers {
        for index in 0..layers {
            let block = format!("{prefix}.resblocks.{index}");
            shapes.insert(format!("{block}.attn.in_proj_bias"), vec![3 * width]);
            shapes.insert(format!("{block}.attn.in_proj_weight"), vec![3 * width, width]);
        }
    }
    let tensors: Vec<(String, Tensor)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let scale = 1.0 / (shape[shape.len() - 1] as f64).sqrt();
            (name, Tensor::randn(shape, (Kind::Float, Device::Cpu)) * scale)
        })
        .collect();
    Tensor::write_safetensors(&tensors, file).unwrap();
}
