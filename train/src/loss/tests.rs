use super::*;

fn numbers(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor).unwrap()
}

#[test]
fn if_the_networks_agree_the_loss_is_exactly_ln_2() {
    for count in [1, 3, 8, 17, 64] {
        let errors_2P = Tensor::rand([2 * count], (Kind::Float, tch::Device::Cpu));
        let errors = PairErrors::of(&errors_2P, &errors_2P.copy()).unwrap();
        let logits = errors.logits(5000.0).unwrap();
        assert!(numbers(&logits).iter().all(|logit| *logit == 0.0));
        for probability in [0.0, 0.25, 0.5, 0.75, 1.0, 1.0 / 3.0] {
            let probability = logits.full_like(probability);
            let losses = losses(&logits, &probability).unwrap();
            assert!(numbers(&losses).iter().all(|loss| *loss == std::f32::consts::LN_2));
            let agreement = agreement(&logits, &probability).unwrap();
            assert!(numbers(&agreement).iter().all(|number| (number - 0.5).abs() < 1e-6));
        }
    }
}

#[test]
fn the_loss_is_that_of_the_formula() {
    let logits = [-90.0f32, -20.0, -3.0, -0.1, 0.2, 4.0, 17.0, 95.0];
    let z = Tensor::from_slice(&logits);
    for p in [0.0f32, 0.25, 0.5, 1.0] {
        let losses = numbers(&losses(&z, &z.full_like(f64::from(p))).unwrap());
        for (z, loss) in logits.iter().zip(losses) {
            let z = f64::from(*z);
            let expected = z.max(0.0) + (-z.abs()).exp().ln_1p() - f64::from(p) * z;
            assert!((f64::from(loss) - expected).abs() <= 2e-7 * z.abs().max(1.0), "{z} {p}");
        }
    }
}

#[test]
fn the_gradient_is_sigma_of_z_minus_p() {
    let z = Tensor::from_slice(&[-3.0f32, 0.0, 0.5, 8.0]).set_requires_grad(true);
    let p = Tensor::from_slice(&[1.0f32, 0.75, 0.0, 1.0]);
    losses(&z, &p).unwrap().sum(Kind::Float).backward();
    let expected = numbers(&(z.sigmoid() - p));
    for (found, expected) in numbers(&z.grad()).iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6);
    }
}

#[test]
fn a_lower_error_on_the_chosen_image_is_a_positive_logit() {
    let model = Tensor::from_slice(&[0.1f32, 0.3]);
    let reference = Tensor::from_slice(&[0.2f32, 0.2]);
    let errors = PairErrors::of(&model, &reference).unwrap();
    let z = numbers(&errors.logits(10.0).unwrap());
    assert!((z[0] - 1.0).abs() < 1e-6, "{z:?}");
    let one = agreement(&Tensor::from_slice(&z), &Tensor::from_slice(&[1.0f32])).unwrap();
    assert_eq!(numbers(&one), [1.0]);
}

#[test]
fn errors_are_means_over_all_but_the_batch() {
    let predicted = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).view([2, 1, 1, 2]);
    let target = Tensor::zeros([2, 1, 1, 2], (Kind::Float, tch::Device::Cpu));
    assert_eq!(numbers(&errors(&predicted, &target).unwrap()), [2.5, 12.5]);
}

proptest::proptest! {
    #[test]
    fn swapping_the_images_and_the_label_changes_nothing(
        errors in proptest::array::uniform4(0.0f32..1.0),
        probability in 0.0f32..=1.0
    ) {
        let [m0, m1, r0, r1] = errors;
        let loss = |model: [f32; 2], reference: [f32; 2], probability: f32| {
            let errors = PairErrors::of(
                &Tensor::from_slice(&model),
                &Tensor::from_slice(&reference),
            ).unwrap();
            let logits = errors.logits(50.0).unwrap();
            numbers(&losses(&logits, &Tensor::from_slice(&[probability])).unwrap())[0]
        };
        let here = loss([m0, m1], [r0, r1], probability);
        let there = loss([m1, m0], [r1, r0], 1.0 - probability);
        proptest::prop_assert!((here - there).abs() <= 1e-5 * here.abs().max(1.0));
    }
}

/// `tests/fixtures/losses.json`, made by `scripts/goldens/losses.py` in numpy.
struct Golden(serde_json::Value);

impl Golden {
    fn read() -> Self {
        Self(serde_json::from_str(include_str!("../../tests/fixtures/losses.json")).unwrap())
    }

    fn number(&self, name: &str) -> f64 {
        self.0[name].as_f64().unwrap()
    }

    /// Both images' numbers of a table `[P, 2]`, f32.
    fn images(&self, name: &str) -> [Vec<f32>; 2] {
        [0, 1].map(|image| {
            let rows = self.0[name].as_array().unwrap().iter();
            rows.map(|row| row[image].as_f64().unwrap() as f32).collect()
        })
    }

    fn objective(&self, kind: LossKind) -> Objective {
        Objective {
            kind,
            mapo_scale: self.number("mapo_scale"),
            ..Objective::dpo(self.number("beta"))
        }
    }
}

#[test]
fn every_loss_and_its_gradient_are_those_of_numpy() {
    let golden = Golden::read();
    let (smoothing, anchor) = (golden.number("label_smoothing"), golden.number("winner_anchor"));
    let labels: Vec<f32> =
        golden.0["labels"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap() as f32).collect();
    let labels = Tensor::from_slice(&labels);
    let mut cases = Vec::new();
    for kind in [LossKind::Dpo, LossKind::Ipo, LossKind::Hinge, LossKind::Mapo] {
        let name = format!("{kind:?}").to_lowercase();
        let plain = golden.objective(kind);
        cases.push((format!("{name}-smoothed"), Objective { label_smoothing: smoothing, ..plain }));
        cases.push((name, plain));
    }
    let dpo = golden.objective(LossKind::Dpo);
    cases.push(("dpo-anchored".to_owned(), Objective { winner_anchor: anchor, ..dpo }));
    let kto = golden.objective(LossKind::Kto);
    for (name, point) in [("kto", "reference_point"), ("kto-above", "reference_point_above")] {
        cases.push((name.to_owned(), kto.with_reference_point(golden.number(point))));
    }
    assert_eq!(cases.len(), golden.0["losses"].as_object().unwrap().len());
    for (name, objective) in cases {
        let leaves = golden
            .images("model")
            .map(|numbers| Tensor::from_slice(&numbers).set_requires_grad(true));
        let errors = PairErrors {
            model_P: [leaves[0].shallow_clone(), leaves[1].shallow_clone()],
            reference_P: golden.images("reference").map(|numbers| Tensor::from_slice(&numbers)),
        };
        let found = objective.losses(&errors, &labels).unwrap();
        // MaPO's logit is 1000 times a difference of numbers near 1.
        let allowed = if objective.kind == LossKind::Mapo { 4e-4 } else { 2e-5 };
        let expected = golden.0["losses"][&name].as_array().unwrap();
        // The sum over pairs, or for a loss of single images over images: twice that of the means.
        let (tables, factor): (Vec<Vec<f32>>, f64) = match &found.images_P {
            None => (vec![numbers(&found.losses_P)], 1.0),
            Some(images) => (images.iter().map(numbers).collect(), 2.0),
        };
        for (pair, expected) in expected.iter().enumerate() {
            for (image, table) in tables.iter().enumerate() {
                let expected = expected.get(image).unwrap_or(expected).as_f64().unwrap();
                let apart = (f64::from(table[pair]) - expected).abs() / expected.abs().max(1e-6);
                assert!(apart < allowed, "{name}, pair {pair}: {} for {expected}", table[pair]);
            }
        }
        (found.losses_P.sum(Kind::Float) * factor).backward();
        let gradients = golden.0["gradients"][&name].as_array().unwrap();
        for (image, leaf) in leaves.iter().enumerate() {
            for (pair, found) in numbers(&leaf.grad()).into_iter().enumerate() {
                let expected = gradients[pair][image].as_f64().unwrap();
                let apart = (f64::from(found) - expected).abs() / expected.abs().max(0.1);
                assert!(
                    apart < 10.0 * allowed,
                    "{name}, pair {pair}, image {image}: {found} for {expected}"
                );
            }
        }
    }
}

#[test]
fn where_the_networks_agree_every_loss_is_its_constant() {
    let errors_2P = Tensor::rand([12], (Kind::Float, tch::Device::Cpu));
    let errors = PairErrors::of(&errors_2P, &errors_2P.copy()).unwrap();
    for p in [0.0, 0.25, 0.5, 1.0] {
        let p = Tensor::full([6], p, (Kind::Float, tch::Device::Cpu));
        let of = |kind| {
            let found = Objective { kind, ..Objective::dpo(5000.0) }.losses(&errors, &p).unwrap();
            assert_eq!(numbers(&found.logits_P), [0.0; 6]);
            numbers(&found.losses_P)
        };
        assert_eq!(of(LossKind::Dpo), [std::f32::consts::LN_2; 6]);
        assert_eq!(of(LossKind::Hinge), [1.0; 6]);
        assert_eq!(of(LossKind::Kto), [0.5; 6]);
        for loss in of(LossKind::Ipo) {
            assert!((loss - 1e-8).abs() < 1e-14, "{loss}");
        }
    }
}

#[test]
fn the_margin_is_twice_z_over_beta() {
    let golden = Golden::read();
    let errors = PairErrors {
        model_P: golden.images("model").map(|numbers| Tensor::from_slice(&numbers)),
        reference_P: golden.images("reference").map(|numbers| Tensor::from_slice(&numbers)),
    };
    let z = numbers(&errors.logits(200.0).unwrap());
    for (margin, z) in numbers(&errors.margins().unwrap()).into_iter().zip(z) {
        assert!((margin - 2.0 * z / 200.0).abs() < 1e-9);
    }
}

#[test]
fn the_reference_point_of_kto_is_a_mean_that_is_not_below_zero() {
    assert_eq!(others::reference_point([0.5, 1.0, 0.0]), 0.5);
    assert_eq!(others::reference_point([-0.5, 0.25]), 0.0);
    assert_eq!(others::reference_point([]), 0.0);
}

#[test]
fn mapo_prefers_the_lower_error_without_a_reference_model() {
    let model = [[0.1f32, 0.3], [0.3, 0.1]].map(|errors| Tensor::from_slice(&errors));
    let errors = PairErrors { model_P: model, reference_P: [(); 2].map(|()| Tensor::new()) };
    let objective = Objective { kind: LossKind::Mapo, ..Objective::dpo(5000.0) };
    assert!(!objective.uses_reference());
    let found = objective.losses(&errors, &Tensor::from_slice(&[1.0f32, 1.0])).unwrap();
    let z = numbers(&found.logits_P);
    assert!(z[0] > 0.0 && z[1] < 0.0, "{z:?}");
    let losses = numbers(&found.losses_P);
    assert!(losses[0] < losses[1], "{losses:?}");
}
