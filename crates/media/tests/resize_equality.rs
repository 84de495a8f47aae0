//! Vector and scalar convolution give the same bytes, for any image, size and window.
#![expect(clippy::unwrap_used, reason = "test code")]

use media::decode::{Image, Mode};
use media::resize::{Filter, Resizer, Window};
use proptest::prelude::*;

fn image() -> impl Strategy<Value = Image> {
    let modes = prop_oneof![
        Just(Mode::Grey),
        Just(Mode::GreyAlpha),
        Just(Mode::Rgb),
        Just(Mode::Rgba),
        Just(Mode::Cmyk)
    ];
    (modes, 1_u32..80, 1_u32..80).prop_flat_map(|(mode, width, height)| {
        let length = width as usize * height as usize * mode.bytes_per_pixel();
        // Black and white pixels drive the filter's lobes to their extremes.
        let pixel = prop_oneof![any::<u8>(), Just(0), Just(255)];
        prop::collection::vec(pixel, length)
            .prop_map(move |pixels| Image::new(mode, width, height, pixels).unwrap())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn vector_equals_scalar(
        image in image(),
        (width, height) in (1_u32..120, 1_u32..120),
        (left, top) in (0.0..1.0_f64, 0.0..1.0_f64),
        bicubic in any::<bool>(),
    ) {
        let filter = if bicubic { Filter::Bicubic } else { Filter::Bilinear };
        let left = (left * f64::from(width)) as u32;
        let top = (top * f64::from(height)) as u32;
        let window = Window { left, top, width: width - left, height: height - top };
        let vector = Resizer::new().resize_window(&image, (width, height), window, filter).unwrap();
        let scalar = Resizer::scalar().resize_window(&image, (width, height), window, filter).unwrap();
        prop_assert_eq!(vector.pixels(), scalar.pixels());
    }
}

#[test]
fn one_resizer_serves_many_sizes() {
    let mut kept = Resizer::new();
    for round in 0..3 {
        for side in 1..40_u32 {
            let pixels = (0..side * 7 * 3).map(|value| (value * 37 + round) as u8).collect();
            let image = Image::new(Mode::Rgb, side, 7, pixels).unwrap();
            let fresh = Resizer::new().resize(&image, (13, 11), Filter::Bicubic).unwrap();
            assert_eq!(kept.resize(&image, (13, 11), Filter::Bicubic).unwrap(), fresh);
        }
    }
}
