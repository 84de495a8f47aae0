//! Tars of pairs, as the webdataset library writes them.

use super::Pair;

/// A tar of these pairs, in Pick-a-Pic's names of members.
pub(crate) fn tar_of(first: usize, pairs: &[Pair]) -> Vec<u8> {
    let mut tar = Vec::new();
    let mut add = |key: &str, name: &str, content: &[u8]| {
        tar.extend(header(&format!("{key}.{name}"), content.len()));
        tar.extend_from_slice(content);
        tar.resize(tar.len().div_ceil(512) * 512, 0);
    };
    for (number, pair) in (first..).zip(pairs) {
        let key = format!("{number:06}");
        for (side, image) in pair.image.iter().enumerate() {
            if let Some(image) = image {
                add(&key, &format!("jpg_{side}.jpg"), image);
            }
            let uid = pair.uid[side].as_deref().unwrap_or_default();
            add(&key, &format!("image_{side}_uid.txt"), uid.as_bytes());
        }
        if let Some(id) = pair.ranking_id {
            add(&key, "ranking_id.txt", id.to_string().as_bytes());
        }
        if let Some(label) = pair.label_0 {
            add(&key, "label_0.txt", label.to_string().as_bytes());
        }
        let caption = pair.caption.as_deref().unwrap_or_default();
        add(&key, "original_prompt.txt", caption.as_bytes());
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn header(name: &str, size: usize) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[156] = b'0';
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
