//! The cleaning of open_clip's `SimpleTokenizer` with `clean='lower'`: ftfy, entities unescaped
//! twice, white space collapsed, lower case.
//!
//! Matches mlfoundations/open_clip, `src/open_clip/tokenizer.py` (`_clean_lower`) as released in
//! open_clip_torch 3.3.0. Letters that Unicode gained after version 14 have their case mapped here
//! and not by Python 3.11.

use super::{ftfy, html};

/// The caption as open_clip tokenizes it.
#[must_use]
pub fn clean(caption: &str) -> String {
    let fixed = ftfy::fix_text(caption);
    let unescaped = html::unescape(&fixed);
    let unescaped = html::unescape(&unescaped);
    let mut words = unescaped.split(is_python_space).filter(|word| !word.is_empty());
    let mut collapsed = String::with_capacity(unescaped.len());
    collapsed.extend(words.next());
    for word in words {
        collapsed.push(' ');
        collapsed.push_str(word);
    }
    collapsed.to_lowercase()
}

/// `str.isspace` of Python, which counts the four separators of ASCII as white space.
pub(super) fn is_python_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}
