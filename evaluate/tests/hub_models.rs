//! Models by their names on the hub, from a small server on this machine that holds the tiny
//! pipelines.
#![expect(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use common::{Fixture, Generated as _, Run, evaluate, model, pipeline};
use testkit::server::{COMMIT, Server, hub};

/// A hub with the tiny pipelines as `me/sd` and `me/sdxl`, and with files of other formats that are
/// not to be asked for.
fn tiny_hub() -> Server {
    let others = [
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/flax_model.msgpack",
        "safety_checker/model.safetensors",
        "v1-5-pruned.ckpt",
        "README.md",
    ];
    hub(&[("me/sd", &pipeline("sd")), ("me/sdxl", &pipeline("sdxl"))], &others)
}

fn on_hub(command: &mut Command, server: &Server, cache: &Path) -> Run {
    for variable in
        ["HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
    {
        command.env_remove(variable);
    }
    Run::of(command.env("HF_HUB_CACHE", cache).env("HF_ENDPOINT", server.address()))
}

/// The files that were asked for, of `me/NAME`.
fn asked(server: &Server) -> Vec<String> {
    let requests = server.requests().into_iter();
    let files = requests.filter_map(|request| {
        let (_, file) = request.path().split_once(&format!("/resolve/{COMMIT}/"))?;
        (request.method == "GET").then(|| file.to_owned())
    });
    files.collect()
}

#[test]
fn a_model_of_the_hub_generates_what_its_folder_generates() {
    let fixture = Fixture::new(&["a red cat"]);
    let local = Run::of(&mut fixture.generate(&[&model("sd")], &["--seeds", "1"]));
    local.expect_generated(1, 1);
    let expected: BTreeMap<String, _> = fixture.images();

    let (server, cache) = (tiny_hub(), fixture.path("cache"));
    let other = Fixture::new(&["a red cat"]);
    let run =
        on_hub(&mut other.generate(&["sd=hf://me/sd@main"], &["--seeds", "1"]), &server, &cache);
    let run = run.expect_generated(1, 1);
    let images = other.images();
    assert_eq!(images.len(), 1);
    for (name, image) in &images {
        assert_eq!(image.pixels, expected[name].pixels);
        assert_eq!(image.recipe(), expected[name].recipe());
    }
    // What comes is said with its size, before it comes.
    assert!(
        run.stderr.contains("downloading") && run.stderr.contains("hf://me/sd@main"),
        "{run:#?}"
    );
    // Of each network one format, and nothing that is not read.
    let files = asked(&server);
    let weights: Vec<&String> =
        files.iter().filter(|file| file.ends_with(".safetensors")).collect();
    assert_eq!(weights.len(), 3, "{files:?}");
    let unwanted = ["bin", "fp16", "msgpack", "ckpt", "safety_checker", "README"];
    assert!(files.iter().all(|file| unwanted.iter().all(|part| !file.contains(part))), "{files:?}");
    let manifest: serde_json::Value =
        serde_json::from_slice(&other.files("out")["manifest.json"]).unwrap();
    assert_eq!(manifest["models"]["sd"]["revision"], COMMIT);

    // Again, and from the folder: nothing is asked for, and it is the same model.
    let requests = server.requests().len();
    on_hub(&mut other.generate(&["sd=hf://me/sd@main"], &["--seeds", "1"]), &server, &cache)
        .expect_generated(0, 1);
    assert_eq!(server.requests().len(), requests);
    Run::of(&mut other.generate(&[&model("sd")], &["--seeds", "1"])).expect_generated(0, 1);
}

#[test]
fn a_unet_of_the_hub_stands_in_for_that_of_a_folder() {
    let (fixture, server) = (Fixture::new(&["a red cat"]), tiny_hub());
    let both = format!("sd={},unet=hf://me/sd", pipeline("sd").display());
    let run =
        on_hub(&mut fixture.generate(&[&both], &["--seeds", "1"]), &server, &fixture.path("cache"));
    run.expect_generated(1, 1);
    let weights: Vec<String> =
        asked(&server).into_iter().filter(|file| file.ends_with(".safetensors")).collect();
    assert_eq!(weights, ["unet/diffusion_pytorch_model.safetensors"]);
    let manifest: serde_json::Value =
        serde_json::from_slice(&fixture.files("out")["manifest.json"]).unwrap();
    assert_eq!(manifest["models"]["sd"]["unet_revision"], COMMIT);
    assert_eq!(manifest["models"]["sd"].get("revision"), None);
}

#[test]
fn what_is_on_this_machine_is_checked_before_the_first_download() {
    let (fixture, server) = (Fixture::new(&["a red cat"]), tiny_hub());
    let cache = fixture.path("cache");
    let run = on_hub(
        &mut fixture.generate(&["far=hf://me/sd", "near=no/such/folder"], &["--seeds", "1"]),
        &server,
        &cache,
    );
    run.expect_error(&["model near", "no/such/folder"]);
    let run = on_hub(
        &mut fixture.generate(&["far=hf://me/sd,unet=lora"], &["--seeds", "1"]),
        &server,
        &cache,
    );
    run.expect_error(&["model far", "lora"]);
    assert!(server.requests().is_empty());
    assert!(!cache.exists());
}

#[test]
fn names_that_are_no_folder_are_explained() {
    let (fixture, server) = (Fixture::new(&["a red cat"]), tiny_hub());
    let cache = fixture.path("cache");
    for (model, expected) in [
        ("m=runwayml/stable-diffusion-v1-5", "hf://runwayml/stable-diffusion-v1-5"),
        ("m=hf://me/none", "has no hf://me/none@main"),
        ("m=hf://none", "the owner is missing"),
        ("m=~/nothing-of-this-name", "/nothing-of-this-name"),
    ] {
        let run = on_hub(&mut fixture.generate(&[model], &["--seeds", "1"]), &server, &cache);
        run.expect_error(&[expected]);
    }
    let (sd, out) = (model("sd"), fixture.path("out").display().to_string());
    let words = ["generate", "--model", &sd, "--prompts", "a photo of a cat", "--out", &out];
    let run = Run::of(&mut evaluate(words));
    run.expect_error(&["a photo of a cat", "hint"]);
}
