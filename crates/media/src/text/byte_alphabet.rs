//! The characters that stand for bytes in vocabulary files (`bytes_to_unicode` of openai/CLIP,
//! `clip/simple_tokenizer.py`).

/// The character of each byte: printable Latin-1 stands for itself, the rest follows from U+0100.
pub(super) fn byte_characters() -> [char; 256] {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut substitute = '\u{100}'..;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        if printable(byte) { char::from(byte) } else { substitute.next().unwrap_or('\u{100}') }
    })
}

/// The bytes in the order in which `bytes_to_unicode` lists them, which is the order of their ids.
pub(super) fn bytes_in_order() -> Vec<u8> {
    let characters = byte_characters();
    let mut bytes: Vec<u8> = (0..=255).collect();
    bytes.sort_by_key(|&byte| characters[usize::from(byte)]);
    bytes
}
