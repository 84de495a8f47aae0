//! Captions per second of both tokenizers on one core: `cargo bench -p balanceddpo-media --bench
//! text`.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench")]

use std::hint::black_box;
use std::time::Instant;

use media::text::{TokenizerKind, load};

fn main() {
    let words = "a detailed portrait of an old lighthouse keeper reading by lamp light, storm outside, \
                 intricate, 8k, by nobody in particular, it’s late & quiet";
    let words: Vec<&str> = words.split(' ').collect();
    // captions of 5 to 24 words; every fourth has curly quotes, accents or an entity
    let captions: Vec<String> = (0..20_000)
        .map(|i| {
            let mut caption: Vec<&str> =
                (0..5 + i % 20).map(|j| words[(i * 7 + j * 3) % words.len()]).collect();
            caption.push(["cat", "robot", "Ünïcödé", "dog &amp; fox"][i % 4]);
            caption.join(" ")
        })
        .collect();
    for kind in [TokenizerKind::HuggingFace, TokenizerKind::OpenClip] {
        let start = Instant::now();
        let tokenizer = load(kind, None, 77).unwrap();
        let loaded = start.elapsed();
        let start = Instant::now();
        for caption in &captions {
            black_box(tokenizer.encode(caption));
        }
        let rate = captions.len() as f64 / start.elapsed().as_secs_f64();
        println!("{kind:?}: {rate:.0} captions/s, loaded in {loaded:?}");
    }
}
