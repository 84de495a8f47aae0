//! The scores below an image, as the paper writes them: `P:0.20 H:0.25`.

/// Makes captions.
#[derive(Debug)]
pub(super) struct Captions {
    letters: Vec<String>,
}

impl Captions {
    pub(super) fn new(metrics: &[&str]) -> Self {
        Self { letters: letters(metrics) }
    }

    /// One letter for each metric.
    pub(super) fn letters(&self) -> &[String] {
        &self.letters
    }

    /// The scores with their letters, and a dash for a score that is missing.
    pub(super) fn of(&self, scores: &[Option<f32>]) -> String {
        let score = |score: &Option<f32>| {
            score.map_or_else(|| "–".to_owned(), |score| format!("{score:.2}"))
        };
        let parts = self.letters.iter().zip(scores);
        let parts: Vec<String> =
            parts.map(|(letter, value)| format!("{letter}:{}", score(value))).collect();
        parts.join(" ")
    }
}

/// P, H, C and A for PickScore, HPS, CLIP and aesthetic; for others the first letter that is free.
fn letters(metrics: &[&str]) -> Vec<String> {
    let mut taken: Vec<String> = Vec::new();
    for metric in metrics {
        let free = |letter: &String| !taken.contains(letter);
        let letters = metric.chars().filter(|letter| letter.is_alphanumeric());
        let mut letters = letters.map(|letter| letter.to_uppercase().to_string());
        let letter = letters.find(free).unwrap_or_else(|| (*metric).to_owned());
        taken.push(letter);
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_are_the_papers() {
        let captions = Captions::new(&["pickscore", "hps", "clip", "aesthetic"]);
        let scores = [Some(0.2), Some(0.25), Some(0.21), Some(4.57)];
        assert_eq!(captions.of(&scores), "P:0.20 H:0.25 C:0.21 A:4.57");
        assert_eq!(captions.of(&[None, Some(1.0)]), "P:– H:1.00");
    }

    #[test]
    fn no_two_letters_are_equal() {
        assert_eq!(letters(&["clip", "clip-l", "c"]), ["C", "L", "c"]);
    }
}
