//! AdamW with moments of 8 bits, as bitsandbytes has it (Dettmers et al., arXiv:2110.02861).
//!
//! A moment is stored in blocks of 256 numbers, in the order of the tensor: the largest magnitude of
//! the block in f32, and for each number the nearest of 256 fractions of it (`dynamic map`). Tensors
//! of fewer than 4,096 numbers keep f32 moments. Maps, block size and that limit are those of
//! bitsandbytes-foundation/bitsandbytes 0.50.2 (`bitsandbytes/functional.py`,
//! `bitsandbytes/optim/optimizer.py`); the update is that of `bitsandbytes/backends/triton/kernels_optim.py`:
//! weights change by the moments before they are rounded, and decay first, as in PyTorch.

use tch::{Device, Kind, TchError, Tensor};

use super::{AdamW, AdamWConfig, Optimizer, check, read_state};
use crate::error::{ModelError, NetworkError};
use crate::shim;
use crate::weights::{Weights, WeightsError};

/// Numbers of a block.
pub const BLOCK: i64 = 256;
/// Tensors of fewer numbers keep f32 moments (`min_8bit_size`).
pub const LEAST_NUMBERS: usize = 4096;
/// Numbers that are updated at a time, whole blocks: bounds the memory beside the state.
const PIECE: i64 = 1 << 22;
/// Exponents of the dynamic map.
const EXPONENTS: i32 = 7;
/// A block of zeros has no largest magnitude to divide by.
const TINY: f64 = 1e-38;

/// The dynamic map: 256 numbers in ascending order, from −1 or from 0 up to 1. For each of seven
/// powers of ten, twice as many as for the one below it, half way between points that divide the
/// decade evenly; and 0 and 1. The very numbers of `create_dynamic_map` in bitsandbytes.
///
/// # Errors
/// If libtorch is out of memory.
#[doc(alias = "create_dynamic_map")]
pub fn dynamic_map(is_signed: bool) -> Result<Vec<f32>, TchError> {
    let mut numbers = vec![0.0, 1.0];
    for exponent in 0..EXPONENTS {
        let points = (1_i64 << (exponent + i32::from(!is_signed))) + 1;
        // PyTorch's own points, to the last bit.
        let points = Tensor::f_linspace(0.1, 1.0, points, (Kind::Float, Device::Cpu))?;
        let points = Vec::<f32>::try_from(&points)?;
        let scale = 10f64.powi(exponent + 1 - EXPONENTS) as f32;
        for pair in points.windows(2) {
            let [low, high] = pair else { continue };
            let middle = scale * ((low + high) / 2.0);
            numbers.push(middle);
            if is_signed {
                numbers.push(-middle);
            }
        }
    }
    numbers.sort_by(f32::total_cmp);
    Ok(numbers)
}

/// A map on a device.
#[derive(Debug)]
struct Map {
    /// `[256]`, ascending.
    numbers: Tensor,
    /// `[255]`: half way between neighbours.
    middles: Tensor,
}

impl Map {
    fn new(is_signed: bool, device: Device) -> Result<Self, TchError> {
        let numbers = dynamic_map(is_signed)?;
        let middles: Vec<f32> = numbers
            .windows(2)
            .filter_map(|pair| match pair {
                [low, high] => Some(((f64::from(*low) + f64::from(*high)) / 2.0) as f32),
                _ => None,
            })
            .collect();
        Ok(Self {
            numbers: Tensor::f_from_slice(&numbers)?.f_to_device(device)?,
            middles: Tensor::f_from_slice(&middles)?.f_to_device(device)?,
        })
    }

    /// The index of the number that is nearest to each fraction, u8.
    fn nearest(&self, fractions: &Tensor) -> Result<Tensor, TchError> {
        fractions.f_bucketize(&self.middles, true, false)?.f_to_kind(Kind::Uint8)
    }

    /// The numbers at these indices, u8 of any shape.
    fn at(&self, codes: &Tensor) -> Result<Tensor, TchError> {
        let flat = codes.f_reshape([-1])?.f_to_kind(Kind::Int)?;
        self.numbers.f_index_select(0, &flat)?.f_view(codes.size().as_slice())
    }
}

/// A moment of one tensor in 8 bits.
#[derive(Debug)]
struct Moment {
    /// Indices into the map, in the shape of the tensor, contiguous u8.
    codes: Tensor,
    /// The largest magnitude of each block, f32.
    largest: Tensor,
}

impl Moment {
    /// Zeros; `zero` is the index of 0 in the map.
    fn new(size: &[i64], zero: i64, device: Device) -> Result<Self, TchError> {
        let count: i64 = size.iter().product();
        let blocks = (count + BLOCK - 1) / BLOCK;
        Ok(Self {
            codes: Tensor::f_full(size, zero, (Kind::Uint8, device))?,
            largest: Tensor::f_zeros([blocks], (Kind::Float, device))?,
        })
    }

    fn reset(&self, zero: i64) -> Result<(), TchError> {
        let _ = self.codes.shallow_clone().f_fill_(zero)?;
        let _ = self.largest.shallow_clone().f_zero_()?;
        Ok(())
    }

    /// The numbers of a piece that begins with a block, f32 `[length]`.
    fn piece(&self, map: &Map, start: i64, length: i64) -> Result<Tensor, TchError> {
        let codes = self.codes.f_view([-1])?.f_narrow(0, start, length)?;
        let fractions = in_blocks(&map.at(&codes)?)?;
        let largest = self.largest.f_narrow(0, start / BLOCK, fractions.size2()?.0)?;
        fractions.f_mul(&largest.f_unsqueeze(1)?)?.f_view([-1])?.f_narrow(0, 0, length)
    }

    /// Stores the numbers of a piece.
    fn store(&self, map: &Map, start: i64, numbers: &Tensor) -> Result<(), TchError> {
        let length = numbers.size1()?;
        let blocks = in_blocks(numbers)?;
        let largest = blocks.f_abs()?.f_amax([1i64], true)?;
        let codes = map.nearest(&blocks.f_div(&largest.f_clamp_min(TINY)?)?)?;
        let codes = codes.f_view([-1])?.f_narrow(0, 0, length)?;
        self.codes.f_view([-1])?.f_narrow(0, start, length)?.f_copy_(&codes)?;
        let count = largest.size2()?.0;
        self.largest.f_narrow(0, start / BLOCK, count)?.f_copy_(&largest.f_view([-1])?)
    }
}

/// `[n]` as `[blocks, 256]`, zeros after the end.
fn in_blocks(numbers: &Tensor) -> Result<Tensor, TchError> {
    let length = numbers.size1()?;
    match length % BLOCK {
        0 => numbers.f_contiguous()?.f_view([-1, BLOCK]),
        rest => numbers.f_constant_pad_nd([0, BLOCK - rest])?.f_view([-1, BLOCK]),
    }
}

/// A parameter of at least [`LEAST_NUMBERS`] numbers, and its moments.
#[derive(Debug)]
struct Slot {
    name: String,
    parameter: Tensor,
    first: Moment,
    second: Moment,
    step: u32,
    /// The same number on the CPU, for the state.
    step_tensor: Tensor,
}

/// [`AdamW`] with moments of 8 bits: 2 bytes and a bit of state for each weight.
///
/// Its state is, for a parameter of at least 4,096 numbers, `PARAMETER.exp_avg` and
/// `PARAMETER.exp_avg_sq` in u8, `PARAMETER.exp_avg_absmax` and `PARAMETER.exp_avg_sq_absmax` in f32
/// for each block, and `PARAMETER.step`; for any other that of [`AdamW`].
#[derive(Debug)]
pub struct AdamW8bit {
    config: AdamWConfig,
    small: AdamW,
    large: Vec<Slot>,
    signed: Map,
    unsigned: Map,
    /// The index of 0 in each map.
    zeros: [i64; 2],
}

impl AdamW8bit {
    /// An optimizer of f32 leaves by name, before its first step.
    ///
    /// # Errors
    /// If a parameter is not f32, or memory runs out.
    pub fn new(parameters: &[(String, Tensor)], config: AdamWConfig) -> Result<Self, NetworkError> {
        check("AdamW8bit", parameters)?;
        let is_large = |(_, parameter): &&(String, Tensor)| parameter.numel() >= LEAST_NUMBERS;
        let small: Vec<(String, Tensor)> = parameters
            .iter()
            .filter(|one| !is_large(one))
            .map(|(name, value)| (name.clone(), value.shallow_clone()))
            .collect();
        let device = parameters.first().map_or(Device::Cpu, |(_, first)| first.device());
        let zero = |is_signed: bool| -> Result<i64, TchError> {
            let map = dynamic_map(is_signed)?;
            // Never absent: `dynamic_map` begins with it.
            let zero = map.iter().position(|number| *number == 0.0).unwrap_or(0);
            Ok(i64::try_from(zero).unwrap_or(0))
        };
        let zeros = [zero(true)?, zero(false)?];
        let slot = |(name, parameter): &(String, Tensor)| -> Result<Slot, TchError> {
            let size = parameter.size();
            Ok(Slot {
                name: name.clone(),
                parameter: parameter.shallow_clone(),
                first: Moment::new(&size, zeros[0], device)?,
                second: Moment::new(&size, zeros[1], device)?,
                step: 0,
                step_tensor: Tensor::f_zeros([] as [i64; 0], (Kind::Float, Device::Cpu))?,
            })
        };
        Ok(Self {
            config,
            small: AdamW::new(&small, config)?,
            large: parameters.iter().filter(is_large).map(slot).collect::<Result<_, _>>()?,
            signed: Map::new(true, device)?,
            unsigned: Map::new(false, device)?,
            zeros,
        })
    }

    fn set_step(slot: &mut Slot, step: u32) -> Result<(), TchError> {
        slot.step = step;
        slot.step_tensor.f_fill_(f64::from(step)).map(drop)
    }
}

impl Slot {
    fn update(
        &self,
        gradient: &Tensor,
        (signed, unsigned): (&Map, &Map),
        config: &AdamWConfig,
        learning_rate: f64,
    ) -> Result<(), TchError> {
        let AdamWConfig { betas: [beta1, beta2], epsilon, weight_decay } = *config;
        let step = f64::from(self.step);
        let [correction1, correction2] = [beta1, beta2].map(|beta| 1.0 - beta.powf(step));
        // `data` leaves autograd's count of changes alone, as the fused optimizer does.
        let weights = self.parameter.data();
        // The blocks follow the order of the tensor, whatever its layout in memory.
        let is_plain = weights.is_contiguous();
        let flat = weights.f_contiguous()?.f_view([-1])?;
        let gradient = gradient.f_contiguous()?.f_view([-1])?;
        let count = flat.size1()?;
        let mut start = 0;
        while start < count {
            let length = PIECE.min(count - start);
            let gradient = gradient.f_narrow(0, start, length)?;
            let mut first = self.first.piece(signed, start, length)?.f_mul_scalar_(beta1)?;
            shim::add_scaled(&mut first, &gradient, 1.0 - beta1)?;
            let mut second = self.second.piece(unsigned, start, length)?.f_mul_scalar_(beta2)?;
            shim::add_scaled(&mut second, &gradient.f_square()?, 1.0 - beta2)?;
            let divisor = second.f_sqrt()?.f_div_scalar_(correction2.sqrt())?;
            let update = first.f_div(&divisor.f_add_scalar(epsilon)?)?;
            let mut piece = flat.f_narrow(0, start, length)?;
            if weight_decay != 0.0 {
                let _ = piece.f_mul_scalar_(1.0 - learning_rate * weight_decay)?;
            }
            shim::add_scaled(&mut piece, &update, -learning_rate / correction1)?;
            self.first.store(signed, start, &first)?;
            self.second.store(unsigned, start, &second)?;
            start += length;
        }
        if !is_plain {
            weights.shallow_clone().f_copy_(&flat.f_view(weights.size().as_slice())?)?;
        }
        Ok(())
    }
}

impl Optimizer for AdamW8bit {
    fn step(&mut self, learning_rate: f64) -> Result<(), NetworkError> {
        self.small.step(learning_rate)?;
        tch::no_grad(|| {
            for slot in &mut self.large {
                let gradient = slot.parameter.grad();
                if gradient.defined() {
                    Self::set_step(slot, slot.step + 1)?;
                    let maps = (&self.signed, &self.unsigned);
                    slot.update(&gradient, maps, &self.config, learning_rate)?;
                }
            }
            Ok(())
        })
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = self.small.state();
        for Slot { name, first, second, step_tensor, .. } in &self.large {
            for (part, tensor) in [
                ("exp_avg", &first.codes),
                ("exp_avg_absmax", &first.largest),
                ("exp_avg_sq", &second.codes),
                ("exp_avg_sq_absmax", &second.largest),
                ("step", step_tensor),
            ] {
                state.push((format!("{name}.{part}"), tensor.shallow_clone()));
            }
        }
        state
    }

    fn load_state(&mut self, weights: &Weights) -> Result<(), ModelError> {
        let file = || weights.files().first().cloned().unwrap_or_default();
        let torch = |source| WeightsError::Torch { file: file(), source };
        let state = self.state();
        let found = read_state("AdamW8bit", weights, &state)?;
        let invalid = |reason: String| WeightsError::Invalid { file: file(), reason };
        let mut steps = Vec::with_capacity(self.large.len());
        for slot in &self.large {
            let name = format!("{}.step", slot.name);
            let place = state.iter().position(|(own, _)| *own == name);
            // Every slot's step is in the state, and `found` is as long.
            let step = place.and_then(|place| found.get(place)).map(|one| one.f_double_value(&[]));
            let step = step.transpose().map_err(torch)?.unwrap_or(0.0);
            if step.fract() != 0.0 || !(0.0..=f64::from(u32::MAX)).contains(&step) {
                let reason = format!("tensor {name:?} is {step}, expected a count of steps");
                return Err(invalid(reason).into());
            }
            steps.push(step as u32);
        }
        for ((_, mut own), stored) in state.into_iter().zip(&found) {
            own.f_copy_(stored).map_err(torch)?;
        }
        for (slot, step) in self.large.iter_mut().zip(steps) {
            Self::set_step(slot, step).map_err(torch)?;
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), NetworkError> {
        self.small.reset()?;
        let [signed, unsigned] = self.zeros;
        for slot in &mut self.large {
            slot.first.reset(signed)?;
            slot.second.reset(unsigned)?;
            Self::set_step(slot, 0)?;
        }
        Ok(())
    }

    fn zero_grad(&mut self) -> Result<(), NetworkError> {
        let large: Vec<Tensor> =
            self.large.iter().map(|slot| slot.parameter.shallow_clone()).collect();
        self.small.zero_grad()?;
        Ok(shim::drop_gradients(&large)?)
    }
}
