use super::*;

fn row(votes: [i8; 4], human: Option<f64>) -> LabelRow {
    let sum: i8 = votes.iter().sum();
    LabelRow {
        pair_id: "a".to_owned(),
        source_file: "f".to_owned(),
        source_row: 0,
        caption: Some("c".to_owned()),
        image_uid: [Some("0".to_owned()), Some("1".to_owned())],
        human_label_0: human,
        scores: votes.iter().map(|vote| [Some(f32::from(*vote)), Some(0.0)]).collect(),
        votes: votes.map(Some).to_vec(),
        vote_sum: Some(sum),
        consensus: Some(sum.signum()),
        status: Status::Ok,
        error: None,
    }
}

fn labeler(preference: Preference, ties: Ties) -> Labeler {
    Labeler {
        preference,
        ties,
        drop_human_ties: false,
        scorers: ["clip", "hps", "pickscore", "aesthetic"].map(str::to_owned).to_vec(),
        scorer: 1,
        factors: vec![1.0; 4],
        weights: None,
    }
}

fn weighted(preference: Preference, weights: [f64; 4]) -> Labeler {
    Labeler { weights: Some(weights.to_vec()), ..labeler(preference, Ties::Drop) }
}

fn probability(labeler: &Labeler, row: &LabelRow) -> Option<f32> {
    labeler.target(row).map(|target| target.at(0).0)
}

const TIE: [i8; 4] = [1, -1, 1, -1];

#[test]
fn names_are_read_and_written() {
    for text in [
        "consensus",
        "human",
        "scorer:hps",
        "random-scorer",
        "vanilla",
        "score-sum",
        "normalized-sum",
        "unanimous",
        "margin",
    ] {
        assert_eq!(text.parse::<Preference>().unwrap().to_string(), text);
    }
    for text in ["", "scorer:", "Consensus", "hps"] {
        assert!(text.parse::<Preference>().unwrap_err().contains("scorer:NAME"), "{text}");
    }
}

#[test]
fn the_majority_decides_and_ties_follow_their_policy() {
    let consensus = labeler(Preference::Consensus, Ties::Drop);
    assert_eq!(probability(&consensus, &row([1, 1, 1, -1], None)), Some(1.0));
    assert_eq!(probability(&consensus, &row([-1, -1, 1, -1], None)), Some(0.0));
    for (ties, expected) in [
        (Ties::Drop, None),
        (Ties::First, Some(1.0)),
        (Ties::Second, Some(0.0)),
        (Ties::Half, Some(0.5)),
    ] {
        let labeler = labeler(Preference::Consensus, ties);
        assert_eq!(probability(&labeler, &row(TIE, Some(1.0))), expected, "{ties:?}");
    }
    let human = labeler(Preference::Consensus, Ties::Human);
    for label in [0.0, 0.5, 1.0] {
        assert_eq!(probability(&human, &row(TIE, Some(label))), Some(label as f32));
    }
    assert_eq!(probability(&human, &row(TIE, None)), None);
}

#[test]
fn failed_rows_are_dropped_under_every_preference() {
    let mut failed = row([1, 1, 1, 1], Some(1.0));
    failed.status = Status::DecodeError;
    for preference in [Preference::Consensus, Preference::Human, Preference::Vanilla] {
        assert_eq!(labeler(preference, Ties::Half).target(&failed), None);
    }
}

#[test]
fn a_partial_row_serves_where_nothing_is_missing() {
    let (votes, human) = ([1, 1, 1, -1], Some(0.0));
    let partial = |consensus: Option<i8>| LabelRow {
        scores: vec![[Some(1.0), Some(0.0)], [None; 2], [Some(1.0), Some(0.0)], [Some(0.0); 2]],
        votes: vec![Some(1), None, Some(1), Some(-1)],
        vote_sum: consensus,
        consensus,
        status: Status::Partial,
        ..row(votes, human)
    };
    let target =
        |preference, consensus| probability(&labeler(preference, Ties::Half), &partial(consensus));
    // `--missing drop` leaves it undecided, `--missing vote` does not.
    assert_eq!(target(Preference::Consensus, None), None);
    assert_eq!(target(Preference::Consensus, Some(1)), Some(1.0));
    assert_eq!(target(Preference::Human, None), Some(0.0));
    // The labeler's one scorer is the one that failed.
    for preference in [
        Preference::Scorer("hps".to_owned()),
        Preference::RandomScorer,
        Preference::Vanilla,
        Preference::ScoreSum,
        Preference::NormalizedSum,
        Preference::Unanimous,
        Preference::Margin,
    ] {
        assert_eq!(target(preference.clone(), Some(1)), None, "{preference}");
    }
    let clip = Labeler { scorer: 0, ..labeler(Preference::Scorer("clip".to_owned()), Ties::Drop) };
    assert_eq!(probability(&clip, &partial(None)), Some(1.0));
    // A voter of weight 0 is not missed.
    let without = weighted(Preference::Margin, [1.0, 0.0, 1.0, 1.0]);
    assert_eq!(probability(&without, &partial(None)), Some(1.0));
}

#[test]
fn a_vote_without_scores_is_a_vote() {
    let mut given = row([1, 1, 1, -1], None);
    given.scores[3] = [None; 2];
    for preference in [Preference::Consensus, Preference::Vanilla, Preference::RandomScorer] {
        assert!(labeler(preference, Ties::Drop).target(&given).is_some());
    }
    assert_eq!(labeler(Preference::ScoreSum, Ties::Half).target(&given), None);
}

#[test]
fn human_ties_stay_one_half_unless_they_are_dropped() {
    let mut human = labeler(Preference::Human, Ties::Drop);
    assert_eq!(probability(&human, &row(TIE, Some(0.5))), Some(0.5));
    assert_eq!(probability(&human, &row(TIE, None)), None);
    human.drop_human_ties = true;
    assert_eq!(probability(&human, &row(TIE, Some(0.5))), None);
    assert_eq!(probability(&human, &row(TIE, Some(1.0))), Some(1.0));
    let mut consensus = labeler(Preference::Consensus, Ties::Drop);
    consensus.drop_human_ties = true;
    assert_eq!(probability(&consensus, &row([1, 1, 1, 1], Some(0.5))), None);
}

#[test]
fn one_scorer_a_fraction_of_votes_and_sums() {
    let one = labeler(Preference::Scorer("hps".to_owned()), Ties::Drop);
    assert_eq!(probability(&one, &row([1, -1, 1, 1], None)), Some(0.0));
    let fraction = labeler(Preference::Vanilla, Ties::Drop);
    assert_eq!(probability(&fraction, &row([1, -1, 1, 1], None)), Some(0.75));
    assert_eq!(probability(&fraction, &row(TIE, None)), Some(0.5));
    let sum = labeler(Preference::ScoreSum, Ties::Second);
    let mut scored = row(TIE, None);
    scored.scores[3] = [Some(-100.0), Some(0.0)];
    assert_eq!(probability(&sum, &scored), Some(0.0));
    let mut scaled = labeler(Preference::NormalizedSum, Ties::Second);
    scaled.factors[3] = 0.001;
    assert_eq!(probability(&scaled, &scored), Some(1.0));
    assert_eq!(probability(&sum, &row(TIE, None)), Some(0.0), "an equal sum is a tie");
}

#[test]
fn ties_are_counted_under_every_preference() {
    let is_tie =
        |preference, votes, human| labeler(preference, Ties::Drop).is_tie(&row(votes, human));
    for preference in [Preference::Consensus, Preference::Vanilla] {
        assert!(is_tie(preference.clone(), TIE, None), "{preference}");
        assert!(!is_tie(preference, [1, 1, 1, -1], Some(0.5)));
    }
    assert!(is_tie(Preference::Human, [1, 1, 1, 1], Some(0.5)));
    assert!(!is_tie(Preference::Human, TIE, Some(1.0)) && !is_tie(Preference::Human, TIE, None));
    assert!(!is_tie(Preference::RandomScorer, TIE, Some(0.5)));
}

#[test]
fn unanimous_drops_every_pair_on_which_a_voter_differs() {
    let unanimous = labeler(Preference::Unanimous, Ties::Half);
    assert_eq!(probability(&unanimous, &row([1; 4], None)), Some(1.0));
    assert_eq!(probability(&unanimous, &row([-1; 4], None)), Some(0.0));
    for votes in [TIE, [1, 1, 1, -1], [-1, 1, -1, -1]] {
        assert_eq!(unanimous.target(&row(votes, Some(1.0))), None);
        assert!(unanimous.is_tie(&row(votes, None)));
    }
    let without_hps = weighted(Preference::Unanimous, [1.0, 0.0, 1.0, 1.0]);
    assert_eq!(probability(&without_hps, &row([1, -1, 1, 1], None)), Some(1.0));
    assert_eq!(probability(&without_hps, &row([1, -1, 1, -1], None)), None);
}

#[test]
fn margin_weighs_a_pair_by_the_majoritys_fraction() {
    let margin = labeler(Preference::Margin, Ties::Half);
    let target = |votes| margin.target(&row(votes, None)).unwrap().at(0);
    assert_eq!(target([1, 1, -1, 1]), (1.0, 0.75));
    assert_eq!(target([-1; 4]), (0.0, 1.0));
    assert_eq!(target(TIE), (0.5, 0.5));
    let heavy = weighted(Preference::Margin, [1.0, 5.0, 1.0, 1.0]);
    assert_eq!(heavy.target(&row([1, -1, 1, 1], None)).unwrap().at(0), (0.0, 0.625));
}

#[test]
fn weights_of_voters_change_majority_fraction_and_ties() {
    let heavy = [1.0, 2.0, 1.0, 1.0];
    let consensus = weighted(Preference::Consensus, heavy);
    assert_eq!(probability(&consensus, &row(TIE, None)), Some(0.0));
    // A majority of voices, a tie of weights.
    let even = weighted(Preference::Consensus, [0.1, 0.3, 0.1, 0.1]);
    assert!(even.is_tie(&row([1, -1, 1, 1], None)));
    assert_eq!(probability(&even, &row([1, -1, 1, 1], None)), None);
    let fraction = weighted(Preference::Vanilla, heavy);
    assert_eq!(probability(&fraction, &row([-1, 1, -1, -1], None)), Some(0.4));
    // Equal weights are no weights.
    let equal = weighted(Preference::Consensus, [3.0; 4]);
    for votes in [TIE, [1, 1, 1, -1], [-1, 1, -1, -1]] {
        let plain = labeler(Preference::Consensus, Ties::Drop);
        assert_eq!(probability(&equal, &row(votes, None)), probability(&plain, &row(votes, None)));
    }
}

#[test]
fn a_missing_vote_counts_unless_its_voter_does_not() {
    let mut missing = row([1, 1, 1, 1], None);
    missing.votes[1] = None;
    for preference in [Preference::Unanimous, Preference::Margin, Preference::Vanilla] {
        assert_eq!(labeler(preference.clone(), Ties::Half).target(&missing), None);
        let without = weighted(preference, [1.0, 0.0, 1.0, 1.0]);
        assert_eq!(probability(&without, &missing), Some(1.0));
    }
}

#[test]
fn weights_are_read_and_written() {
    let weights: VoterWeights = "hps=2, clip=0.5".parse().unwrap();
    assert_eq!(weights.to_string(), "clip=0.5,hps=2");
    assert_eq!((weights.of("hps"), weights.of("pickscore")), (2.0, 1.0));
    assert!(!weights.are_equal() && "a=1,b=1".parse::<VoterWeights>().unwrap().are_equal());
    for (text, says) in [
        ("", "NAME=WEIGHT"),
        ("hps", "\"hps\""),
        ("hps=-1", "0 or more"),
        ("hps=nan", "0 or more"),
        ("=1", "\"=1\""),
        ("hps=1,hps=2", "two for \"hps\""),
    ] {
        let error = text.parse::<VoterWeights>().unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn a_random_scorer_follows_from_seed_and_step() {
    let random = labeler(Preference::RandomScorer, Ties::Drop);
    let target = random.target(&row([1, -1, -1, 1], None)).unwrap();
    let by_scorer: Vec<f32> = (0..4).map(|scorer| target.at(scorer).0).collect();
    assert_eq!(by_scorer, [1.0, 0.0, 0.0, 1.0]);
    let sampled: Vec<usize> = (1..=400).map(|step| scorer_of_step(5, step, 4)).collect();
    assert_eq!(sampled, (1..=400).map(|step| scorer_of_step(5, step, 4)).collect::<Vec<_>>());
    for scorer in 0..4 {
        let count = sampled.iter().filter(|index| **index == scorer).count();
        assert!((60..=140).contains(&count), "scorer {scorer}: {count} of 400");
    }
    assert_ne!(sampled, (1..=400).map(|step| scorer_of_step(6, step, 4)).collect::<Vec<_>>());
}

proptest::proptest! {
    #[test]
    fn swapping_the_images_turns_the_probability_around(
        votes in proptest::array::uniform4(proptest::bool::ANY)
    ) {
        let votes = votes.map(|first| if first { 1 } else { -1 });
        let swapped = votes.map(|vote: i8| -vote);
        for preference in [Preference::Consensus, Preference::Vanilla, Preference::ScoreSum] {
            let labeler = labeler(preference, Ties::Half);
            let here = probability(&labeler, &row(votes, None)).unwrap();
            let there = probability(&labeler, &row(swapped, None)).unwrap();
            proptest::prop_assert_eq!(here, 1.0 - there);
        }
    }
}
