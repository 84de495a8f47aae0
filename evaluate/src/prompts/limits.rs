//! How many prompts of each set are taken.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How many prompts a published evaluation takes of each set.
///
/// The sample sizes behind the percentages in a table of the BalancedDPO paper are not printed
/// there: each is the smallest number of prompts for which every printed percentage is a whole
/// number of wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Preset {
    /// Table 1: 297 of Pick-a-Pic, 1129 of PartiPrompts, 150 of HPD.
    PaperSd15,
    /// Table 2: 100 of each.
    PaperSdxl,
    /// Table 5: 300 of Pick-a-Pic.
    PaperSd21,
    /// The benchmark of HPS v2: 800 of each of four styles, one image each.
    HpsV2,
    /// All 553 prompts of GenEval (djghosh13/geneval `prompts/evaluation_metadata.jsonl`), whose
    /// tags are the categories.
    GenevalPrompts,
}

/// The styles of HPS v2's benchmark. Each is a set of prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// `anime.json`.
    Anime,
    /// `concept-art.json`.
    ConceptArt,
    /// `paintings.json`.
    Paintings,
    /// `photo.json`.
    Photo,
}

impl Style {
    /// All, in the order of the benchmark's tables.
    pub const ALL: [Self; 4] = [Self::Anime, Self::ConceptArt, Self::Paintings, Self::Photo];
    /// Prompts of each.
    const PROMPTS: usize = 800;

    /// Its name in the benchmark.
    pub fn name(self) -> &'static str {
        match self {
            Self::Anime => "anime",
            Self::ConceptArt => "concept-art",
            Self::Paintings => "paintings",
            Self::Photo => "photo",
        }
    }

    /// The style of a set: by the letters of its name, which is that of the style.
    pub fn of(set: &str) -> Option<Self> {
        let plain = plain(set);
        Self::ALL.into_iter().find(|style| plain == self::plain(style.name()))
    }
}

/// The paper's collections of prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Collection {
    PickAPic,
    PartiPrompts,
    Hpd,
    GenEval,
}

/// How many prompts of a set are taken, unless its source has a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// At most this many.
    pub limit: Option<usize>,
    /// As many as a published evaluation takes.
    pub preset: Option<Preset>,
}

impl Limits {
    /// The limit of a set by its name.
    ///
    /// # Errors
    /// If the preset has no number for the set: what to do instead.
    pub fn of(self, set: &str) -> Result<Option<usize>, String> {
        let Some(preset) = self.preset else { return Ok(self.limit) };
        if preset == Preset::HpsV2 {
            let unknown = || {
                format!(
                    "--preset {preset} does not know the set {set:?}; hint: after the file, add \
                     ,name=anime or ,name=concept-art or ,name=paintings or ,name=photo"
                )
            };
            return Style::of(set).map(|_| Some(Style::PROMPTS)).ok_or_else(unknown);
        }
        match Collection::of(set) {
            None => Err(format!(
                "--preset {preset} does not know the set {set:?}; hint: after the file, add {}, or \
                 ,limit=N",
                preset.names_hint()
            )),
            Some(collection) => match preset.size(collection) {
                None => Err(format!(
                    "--preset {preset} has no number for the set {set:?}: {}; hint: after the \
                     file, add ,limit=N",
                    preset.has()
                )),
                size => Ok(size),
            },
        }
    }
}

impl Preset {
    const NAMES: [(Self, &'static str); 5] = [
        (Self::PaperSd15, "paper-sd15"),
        (Self::PaperSdxl, "paper-sdxl"),
        (Self::PaperSd21, "paper-sd21"),
        (Self::HpsV2, "hps-v2"),
        (Self::GenevalPrompts, "geneval-prompts"),
    ];

    /// Images of each prompt, if the evaluation says how many.
    pub fn seeds(self) -> Option<u64> {
        match self {
            Self::HpsV2 => Some(1),
            Self::GenevalPrompts => Some(4),
            Self::PaperSd15 | Self::PaperSdxl | Self::PaperSd21 => None,
        }
    }

    /// How a set gets a name that the preset knows.
    fn names_hint(self) -> &'static str {
        match self {
            Self::GenevalPrompts => ",name=geneval",
            _ => ",name=pickapic or ,name=partiprompts or ,name=hpd",
        }
    }

    /// Which sets it has.
    fn has(self) -> &'static str {
        match self {
            Self::PaperSd15 | Self::PaperSdxl => "the paper's table has its three sets alone",
            Self::PaperSd21 => "the paper's table has Pick-a-Pic alone",
            Self::HpsV2 => "it has four styles",
            Self::GenevalPrompts => "it is GenEval's",
        }
    }

    fn size(self, collection: Collection) -> Option<usize> {
        match (self, collection) {
            (Self::PaperSd15, Collection::PickAPic) => Some(297),
            (Self::PaperSd15, Collection::PartiPrompts) => Some(1129),
            (Self::PaperSd15, Collection::Hpd) => Some(150),
            (Self::GenevalPrompts, Collection::GenEval) => Some(553),
            (Self::GenevalPrompts, _) | (_, Collection::GenEval) => None,
            (Self::PaperSdxl, _) => Some(100),
            (Self::PaperSd21, Collection::PickAPic) => Some(300),
            (Self::PaperSd21 | Self::HpsV2, _) => None,
        }
    }
}

impl Collection {
    /// By the beginning of a set's name, its letters and digits alone.
    fn of(set: &str) -> Option<Self> {
        let plain = plain(set);
        [
            ("pickapic", Self::PickAPic),
            ("parti", Self::PartiPrompts),
            ("hpd", Self::Hpd),
            ("geneval", Self::GenEval),
            // The published file.
            ("evaluationmetadata", Self::GenEval),
        ]
        .into_iter()
        .find_map(|(name, collection)| plain.starts_with(name).then_some(collection))
    }
}

/// The letters and digits of a name, in lower case.
fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::NAMES.iter().find(|(_, name)| *name == text);
        known.map(|(preset, _)| *preset).ok_or_else(|| {
            format!(
                "expected paper-sd15, paper-sdxl, paper-sd21, hps-v2 or geneval-prompts, found \
                 {text:?}"
            )
        })
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(preset, _)| preset == self);
        formatter.write_str(name.map_or("", |(_, name)| name))
    }
}

crate::sources::as_text!(Preset);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_know_the_papers_sets() {
        let of = |preset: &str, set: &str| {
            Limits { limit: None, preset: Some(preset.parse().unwrap()) }.of(set)
        };
        for (set, sizes) in [
            ("Pick-a-Pic validation", [297, 100, 300]),
            ("pickapic_v1", [297, 100, 300]),
            ("PartiPrompts", [1129, 100, 0]),
            ("hpdv2_test_400", [150, 100, 0]),
        ] {
            for (preset, size) in ["paper-sd15", "paper-sdxl", "paper-sd21"].into_iter().zip(sizes)
            {
                match of(preset, set) {
                    Ok(found) => assert_eq!(found, Some(size)),
                    Err(error) => {
                        assert!(size == 0 && error.contains("Pick-a-Pic alone"), "{error}");
                    }
                }
            }
        }
        let error = of("paper-sd15", "my prompts").unwrap_err();
        assert!(error.contains("hint: after the file, add ,name=pickapic"), "{error}");
        assert_eq!(Limits::default().of("my prompts"), Ok(None));
        assert_eq!(of("geneval-prompts", "evaluation_metadata"), Ok(Some(553)));
        assert!(of("geneval-prompts", "hpd").unwrap_err().contains("it is GenEval's"));
        assert!(of("geneval-prompts", "x").unwrap_err().contains(",name=geneval,"));
        assert!(of("paper-sdxl", "geneval").unwrap_err().contains("three sets alone"));
        assert_eq!(Limits { limit: Some(3), preset: None }.of("x"), Ok(Some(3)));
        assert!("paper".parse::<Preset>().is_err());
    }

    #[test]
    fn the_benchmark_of_hps_v2_takes_800_of_each_style() {
        let limits = Limits { limit: None, preset: Some("hps-v2".parse().unwrap()) };
        for set in ["anime", "concept-art", "Concept Art", "paintings", "photo"] {
            assert_eq!(limits.of(set), Ok(Some(800)), "{set}");
        }
        assert_eq!(Style::of("concept_art"), Some(Style::ConceptArt));
        let error = limits.of("drawbench").unwrap_err();
        assert!(error.contains("\"drawbench\"; hint: after the file, add ,name=anime"), "{error}");
        let seeds = |preset: &str| preset.parse::<Preset>().unwrap().seeds();
        assert_eq!((seeds("hps-v2"), seeds("paper-sd15")), (Some(1), None));
    }
}
