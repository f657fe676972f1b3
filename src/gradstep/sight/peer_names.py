"""Every optimizer, stage, wrapper and schedule that other libraries name, and ours or the reason.

A line is one or several of their names, ``=`` and what it is here: names of this package in
backticks, ``|`` between what is written together; or a sentence that says why it is not here. Names
without ``=`` are called here as there, in some spelling. ``?`` marks what is shown once it is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

#: Library -> its names.
PEERS: dict[str, str] = {
    "torch.optim 2.15": """
Adadelta Adafactor Adagrad Adam AdamW Adamax ASGD LBFGS Muon NAdam RAdam RMSprop Rprop SGD \
SparseAdam
torch.optim.functional = `Rule.init` and `Rule.update`, pure where torch's write in place
lr_scheduler.ConstantLR = `schedule.constant`
lr_scheduler.LinearLR = `schedule.linear`
lr_scheduler.ExponentialLR = `schedule.exponential`
lr_scheduler.StepLR, lr_scheduler.MultiStepLR = `schedule.piecewise`
lr_scheduler.CosineAnnealingLR = `schedule.cosine`
lr_scheduler.CosineAnnealingWarmRestarts = `schedule.cosine_restarts`
lr_scheduler.PolynomialLR = `schedule.polynomial`
lr_scheduler.OneCycleLR = `schedule.one_cycle`
lr_scheduler.CyclicLR = `schedule.cyclic`
lr_scheduler.SequentialLR = `schedule.join`
lr_scheduler.ReduceLROnPlateau = `ReduceOnPlateau`
lr_scheduler.LambdaLR, lr_scheduler.MultiplicativeLR, lr_scheduler.ChainedScheduler = any \
function of the step
swa_utils.AveragedModel = `EMA`
""",
    "Hugging Face transformers 5.24, TrainingArguments(optim=…)": """
adamw_torch, adamw_torch_fused = `AdamW`
adamw_torch_8bit, adamw_bnb_8bit, adamw_8bit = `AdamW` with state_dtype="dynamic8"
adamw_torch_4bit = `AdamW` with state_dtype="int4"
adamw_anyprecision = `AdamW` with low_precision="kahan"
adamw_torch_xla = not here: torch_xla's, for TPUs
adamw_torch_npu_fused = not here: torch_npu's, for Ascend NPUs
adafactor = `FairseqAdafactor`
ademamix = `AdEMAMix`
ademamix_8bit = `AdEMAMix` with state_dtype="dynamic8"
paged_adamw_32bit, paged_adamw_8bit, paged_ademamix_32bit, paged_ademamix_8bit, \
paged_lion_32bit, paged_lion_8bit = the same in `Offload` where the model is on an accelerator
lion_32bit = `Lion`
lion_8bit = `Lion` with state_dtype="dynamic8"
sgd = `SGD`
adagrad = `Adagrad`
rmsprop, rmsprop_bnb, rmsprop_bnb_32bit = `RMSprop`
rmsprop_bnb_8bit = `RMSprop` with state_dtype="dynamic8"
galore_adamw, galore_adamw_8bit = `GaLore` for the target modules, `AdamW` for the rest
galore_adamw_layerwise, galore_adamw_8bit_layerwise = `GaLore` in `StepInBackward`
galore_adafactor, galore_adafactor_layerwise = not here: GaLore is around AdamW alone
apollo_adamw = `APOLLO` for the target modules, `AdamW` for the rest
apollo_adamw_layerwise = `APOLLO` in `StepInBackward`
lomo = `LOMO` in `StepInBackward`
adalomo = `AdaLomo` in `StepInBackward`
grokadamw = `grokfast` before `adam`
schedule_free_adamw = `AdamWScheduleFree`
schedule_free_radam = `RAdamScheduleFree`
schedule_free_sgd = `SGDScheduleFree`
stable_adamw = `StableAdamW`
""",
    "Hugging Face transformers, lr_scheduler_type": """
linear = `schedule.warmup` and `schedule.linear`
cosine = `schedule.warmup` and `schedule.cosine`
cosine_with_restarts = `schedule.cosine_restarts`
cosine_with_min_lr, cosine_warmup_with_min_lr = `schedule.cosine` with an end
polynomial = `schedule.polynomial`
constant = `schedule.constant`
constant_with_warmup = `schedule.warmup`
inverse_sqrt = `schedule.inverse_square_root`
reduce_lr_on_plateau = `ReduceOnPlateau`
warmup_stable_decay = `schedule.warmup_stable_decay`
greedy = not here: it follows the loss of each batch up and down
""",
    "axolotl 0.21": """
optimi_adamw = `AdamW`
ao_adamw_4bit, ao_adamw_8bit, ao_adamw_fp8 = `AdamW` with a state_dtype
adopt_adamw = `ADOPT`
adamc = ?corrected_decay
came_pytorch = `CAME`
muon = `Muon`
muon_8bit = `Muon` with state_dtype="int8"
dion = ?Dion
sinkgd = ?SinkGD
polora = not here: a rule for pairs of LoRA's matrices, which are two parameters
flash_adamw, flash_adam, flash_sgd, flash_sgdw, flash_lion = the classes with state_dtype="int8" \
and low_precision="remainder"
scao = not here: curvature of activations, which no optimizer sees
q_galore_adamw8bit = not here: quantized projections; `GaLore` keeps them whole
loraplus_lr_ratio = `create` with lora_plus
embedding_lr = `create` with embedding_lr
lr_groups = parameter groups
one_cycle = `schedule.one_cycle`
rex = `schedule.rex`
""",
    "optax 0.2.8": """
adabelief adadelta adagrad adam adamax adamw adan fromage lamb lars lbfgs lion nadam nadamw \
novograd radam rmsprop rprop sgd sm3 signum yogi adopt ademamix dog dowg galore kron madgrad \
momo momo_adam muon polyak_sgd prodigy simplified_ademamix sophia zero_nans centralize chain \
scale lookahead trace clip_by_block_rms clip_by_global_norm adaptive_grad_clip \
normalize_by_update_norm scale_by_sign scale_by_trust_ratio
adafactor = `FairseqAdafactor` and `Adafactor`
adamaxw = `adamax` before `decay_weights`
amsgrad = `Adam` with amsgrad
sign_sgd = `SignSGD`
optimistic_gradient_descent, optimistic_adam, optimistic_adam_v2 = `OptimisticSGD`; of Adam, \
optimistic_sgd before adam
noisy_sgd, add_noise = `GradientNoise`
dadapt_adamw = `DAdaptAdam`
schedule_free, schedule_free_sgd, schedule_free_adamw = `schedule_free`, `SGDScheduleFree`, \
`AdamWScheduleFree`
sam = `SAM`
mechanize = `Mechanic`
acprop = `ACProp`
cocob = `COCOB`
dpsgd, differentially_private_aggregate, per_example_global_norm_clip, \
per_example_layer_norm_clip = not here: gradients of single examples, which no optimizer sees
clip = `clip_by_value`
ema, measure_with_ema = `EMA`
apply_if_finite, skip_not_finite = `SkipNonFinite`
skip_large_updates = `adagc`
apply_every, MultiSteps = `Accumulate`
masked, partition, multi_transform, conditionally_mask, selective_transform = `partition`
freeze, set_to_zero = `Freeze`
add_decayed_weights = `decay_weights`
keep_params_nonnegative = `keep_in_range`
inject_hyperparams = any hyperparameter takes a schedule
scale_by_schedule, scale_by_learning_rate = `scale`
normalize = `normalize`
reduce_on_plateau = `ReduceOnPlateau`
hutchinson_estimator_diag_hessian = `hutchinson`
split_real_and_imaginary = complex weights are taken as they are
scale_by_factored_rms, scale_by_param_block_norm, scale_by_param_block_rms = parts of \
`FairseqAdafactor`
scale_by_backtracking_linesearch, scale_by_zoom_linesearch = not here: they ask for the loss \
anew along a line; `LBFGS` does
scale_by_adam, scale_by_lion, scale_by_rms and its other stages = the rules themselves: a rule \
is a stage
constant_schedule = `schedule.constant`
linear_schedule = `schedule.linear`
polynomial_schedule = `schedule.polynomial`
cosine_decay_schedule = `schedule.cosine`
exponential_decay = `schedule.exponential`
piecewise_constant_schedule = `schedule.piecewise`
piecewise_interpolate_schedule = `schedule.interpolate`
join_schedules = `schedule.join`
sgdr_schedule = `schedule.cosine_restarts`
cosine_onecycle_schedule, linear_onecycle_schedule = `schedule.one_cycle`
warmup_constant_schedule, warmup_cosine_decay_schedule, warmup_exponential_decay_schedule = \
`schedule.warmup`
""",
    "pytorch_optimizer 4.1": """
ADOPT APOLLO AccSGD AdEMAMix AdaBelief AdaBound AdaDelta AdaFactor AdaHessian AdaLOMO AdaMax \
AdaMod AdaNorm AdaPNM AdaSmooth AdaTAM Adai Adam AdamG AdamMini AdamP AdamW Adan AggMo AliG Amos \
Ano BCOS CAME DAdaptAdam DAdaptSGD DiffGrad EXAdam FAdam FOCUS FTRL Fromage GaLore Grams Gravity \
Kate Kron LARS LBFGS LOMO LaProp Lamb Lion MADGRAD MARS MSVAG Muon NAdam Nero NovoGrad PAdam PID \
PNM Prodigy QHAdam QHM RAdam RMSprop SGD SGDP SGDSaI SGDW SM3 SOAP SRMM SWATS Shampoo SignSGD \
SimplifiedAdEMAMix StableAdamW TAM Tiger VSGD Yogi GSAM LookSAM FriendlySAM WSAM SAM ASAM
ASGD = not here: Malitsky and Mishchenko's step size; torch's averaged descent has the name
A2Grad = not here: its step size is the loss's smoothness, and no learning rate is left
AdaGC = `adagc` before `adam`
AdaGO = `AdaGO`
AdaMuon = ?AdaMuon
AdaShift = not here: it keeps the last ten gradients
AdamC = ?corrected_decay
AdamS = `AdamS`
AdamWSN = not here: AdamW with a second moment of subsets; `AdamMini` has one a row
Adalite = not here: no paper
Aida = `Aida`
Alice = not here yet: RACS's low-rank sibling
ApolloDQN = `ApolloQuasiNewton`
AvaGrad = `AvaGrad`
BSAM = not here: SAM by variational inference
Conda = ?Conda
DASH = not here: `Shampoo` in batched blocks
DAdaptAdaGrad, DAdaptAdan, DAdaptLion = `DAdaptAdaGrad`, `DAdaptAdan`, `DAdaptLion`
DeMo = not here: it shares what it sends between processes
DistributedMuon = `Muon`, whose work is shared among processes
DualAdam = not here: no second source of its formula
EmoFact, EmoLynx, EmoNavi = not here: no paper
Fira = ?Fira
FlashAdamW = `AdamW` with state_dtype="int8" and low_precision="remainder"
GrokFastAdamW = `grokfast` before `adam`
LoRARite = not here: a rule for pairs of LoRA's matrices, which are two parameters
Magma = not here: masks by chance over blocks
MuonClip = not here: it needs the attention's logits, which no optimizer sees
NorMuon = ?NorMuon
PCGrad, RotoGrad = not here: gradients of several losses, which no optimizer sees
RACS = ?RACS
ROSE = not here: no paper
Ranger, Ranger21 = `radam`, `lookahead` and `centralize` in a chain
SCION, SCIONLight = ?Scion
SPAM = `clip_spikes` before `adam`
SPlus = ?SPlus
SaRA = not here: it trains the weights near 0 alone
SafeFP16Optimizer, DynamicLossScaler = torch.amp.GradScaler, which every optimizer here takes
ScalableShampoo = `Shampoo`
ScheduleFreeAdamW, ScheduleFreeRAdam, ScheduleFreeSGD = `AdamWScheduleFree`, \
`RAdamScheduleFree`, `SGDScheduleFree`
ScheduleFreeWrapper = `schedule_free`
SophiaH = `Sophia`
SpectralSphere = not here: `Muon` on a sphere of spectral norms
StableSPAM = `stable_spam` before `adam`
TRAC = not here: a learning rate tuner for what changes for ever; `Mechanic` is near
Lookahead = `lookahead`
OrthoGrad = `orthogonal_gradient`
GradientCentralization = `centralize`
AGC = `adaptive_grad_clip`
CosineAnnealingWarmupRestarts = `schedule.cosine_restarts`
CosineScheduler, LinearScheduler, PolyScheduler = `schedule.cosine`, `schedule.linear`, \
`schedule.polynomial`
ProportionScheduler = SAM's rho may be changed in its group
REXScheduler = `schedule.rex`
get_chebyshev_schedule = not here: a permutation of rates; any function of the step will do
get_wsd_schedule = `schedule.warmup_stable_decay`
deberta_v3_large_lr_scheduler = `create` with layer_decay
""",
    "timm 1.0.31": """
adabelief adadelta adafactor adagrad adahessian adam adamax adamp adamw adan adopt lamb laprop \
lars lion madgrad mars muon nadam nadamw novograd radam rmsprop sgd sgdp sgdw
adafactorbv = not here: Big Vision's Adafactor; `FairseqAdafactor` with momentum is near
adamuon, nadamuon = ?AdaMuon
adanp, adamwlegacy, adopw, nvnovograd, rmsproptf, nvlamb = older or TensorFlow's variants of the \
same rules
adoptw = `ADOPT`
kron, kronw = `Kron`
lambc, lamb with clipping = `clip_by_global_norm` before `lamb`
larc, nlarc, nlars = `LARS` behind clipping, with Nesterov
lookahead_… = `lookahead`
momentum = `SGD` with momentum
c… (cadamw, clion, …) = `create` with the same names, which puts `cautious` behind
…c (corrected decay) = ?corrected_decay
fused…, bnb… = the classes; states in 8 bits by state_dtype
param_groups_layer_decay = `create` with layer_decay; `layer_depths`
param_groups_weight_decay = `for_model`
CosineLRScheduler, TanhLRScheduler, StepLRScheduler, PolyLRScheduler, PlateauLRScheduler, \
MultiStepLRScheduler = `schedule`; a tanh is any function of the step
""",
    "heavyball 3.2": """
SGD AdamW NAdam AdEMAMix RMSprop ADOPT Muon LaProp SOAP
SFAdamW = `AdamWScheduleFree`
PSGDKron = `Kron`
PSGDPRO = `PSGDPro`
PSGDLRA, QSGD, LATHER, SOLP, SUDSAdamW = not here: other gauges and ranks of `Kron`
OrthoLaProp, LaPropOrtho, MuonLaProp = `orthogonalize` before or behind `laprop`
SignLaProp = `scale_by_sign` behind `laprop`
MSAMLaProp = not here: SAM along the momentum
UnscaledAdamW = `adam` without corrections
HyperBallAdamW = ?hyperball
KLSOAP, KLShampoo = ?KLSOAP
AdamC = ?corrected_decay
Scion = ?Scion
SAMWrapper = `SAM`
SplitOpt = `partition`
flag mars = `mars_correction`
flag ecc = `low_precision`
flag palm = beta2 as a schedule
flags trust_region_clip, a_law, mu_law, softsign = not here: `clip_by_block_rms` is near
""",
    "torch-optimi 0.3": """
Adam AdamW Adan Lion RAdam SGD StableAdamW
Ranger = `radam` and `lookahead` in a chain
fully decoupled decay = `independent_decay`
Kahan = `low_precision` "kahan"
gradient release = `StepInBackward`
""",
    "bitsandbytes 0.50": """
Adagrad Adam AdamW AdEMAMix LAMB LARS Lion RMSprop SGD
…8bit = the classes with state_dtype="dynamic8"
Paged… = the classes in `Offload`
""",
    "torchao 0.18": """
AdamW8bit, AdamW4bit, AdamWFp8, Adam8bit, Adam4bit, AdamFp8 = `AdamW` and `Adam` with \
state_dtype="dynamic8", "int4", "float8"
CPUOffloadOptimizer = `Offload`
_AdamW with bf16_stochastic_round = `AdamW` with low_precision="stochastic"
""",
    "schedulefree 1.4": """
SGDScheduleFree AdamWScheduleFree RAdamScheduleFree
…Closure, …Reference = the classes: a step takes a closure
ScheduleFreeWrapper = `schedule_free`
""",
    "keras 3.15": """
Adadelta Adafactor Adagrad Adam AdamW Adamax Lamb Lion Muon Nadam RMSprop SGD
Ftrl = `FTRL`
LossScaleOptimizer = torch.amp.GradScaler, which every optimizer here takes
MultiOptimizer = `partition`
use_ema = `EMA`
gradient_accumulation_steps = `Accumulate`
CosineDecayRestarts, InverseTimeDecay, PiecewiseConstantDecay, PolynomialDecay = `schedule`; an \
inverse time is any function of the step
""",
    "apex and TransformerEngine": """
FusedAdagrad, FusedAdam, FusedLAMB, FusedNovoGrad, FusedSGD, FusedMixedPrecisionLamb = the \
classes, all of which are fused; low_precision="master"
DistributedFusedAdam, DistributedFusedLAMB = ZeRO and FSDP2 around the classes
""",
    "Emerging-Optimizers, microsoft/dion, facebookresearch/optimizers": """
Muon SOAP Lion LaProp Signum RMSprop Adam AdEMAMix
AdaptiveMuon = ?NorMuon
MuonHyperball = ?hyperball
PolarGrad = ?PolarGrad
MOP = not here yet: PolarGrad by singular values
Scion = ?Scion
SPEL, Iso, ObliqueSGD, ObliqueAdam, Muown = not here yet: steps on manifolds of matrices
sinkhorn_muon = ?SinkGD
REKLS = ?KLShampoo
PSGD = `Kron`, in its own gauge
PSGDPro = `PSGDPro`
sim_ademamix = `SimplifiedAdEMAMix`
MAdam = not here: multiplies weights, for logarithmic number systems
Dion, Dion2, NorDion2 = ?Dion
DistributedShampoo = `Shampoo`
GPA-AdamW = not here: a smoothed Schedule-Free
""",
    "DeepSpeed 0.19, ColossalAI, Megatron-LM, ms-swift, LLaMA-Factory": """
adam, adamw, adagrad, lamb, lion, muon, sgd, soap = the classes
DeepSpeedCPUAdam, DeepSpeedCPUAdagrad, DeepSpeedCPULion, CPUAdam, HybridAdam, ZenFlowCPUAdam = \
the classes in `Offload`
onebitadam, onebitlamb, zerooneadam = not here: they compress what processes send each other
muadam, muadamw, musgd = groups with rates by fan-in
adaptive_muon = ?NorMuon
dist_muon = `Muon`, whose work is shared among processes
DistributedAdafactor, DistributedCAME, DistributedLamb, DistributedGaLore = `FairseqAdafactor`, \
`CAME`, `LAMB`, `GaLore` under FSDP2
qk_clip, muonclip = not here: they need the attention's logits, which no optimizer sees
lorap = not here: a rule for pairs of LoRA's matrices, which are two parameters
badam = `Freeze` with patterns that change
decoupled-lr = `create` with head_lr and embedding_lr
lr decay constant, linear, cosine, inverse-square-root, WSD = `schedule.constant`, \
`schedule.linear`, `schedule.cosine`, `schedule.inverse_square_root`, \
`schedule.warmup_stable_decay` with four ways down
""",
    "Small packages": """
galore-torch, apollo-torch = `GaLore`, `APOLLO`
q-galore-torch = not here: quantized projections
lomo-optim = `LOMO`, `AdaLomo`
adam-atan2-pytorch = `AdamAtan2`
grokadamw = `grokfast` before `adam`
ivon-opt = not here: it draws weights from its posterior before each gradient
sgd-sai = `SGDSaI`
kron-torch = `Kron`
mechanic-pytorch = `Mechanic`
muon-fsdp2, dtensor-muon, muonium = `Muon` under FSDP2
magma-optimizer, gefen, adv_optm = not here: variants of rules that are
adafactor8bit = `FairseqAdafactor`, whose second moment has no codes to be stored in
EMA-Nesterov (modded-nanogpt) = `ema_nesterov`
DiLoCo's outer optimizer = `outer_nesterov`
PowerCool (modded-nanogpt) = `schedule.power_cooldown`
flashoptim = the classes with state_dtype="int8" and low_precision="remainder"
""",
}


@dataclass(frozen=True)
class PeerRow:
    """A row of the catalogue.

    Attributes:
        theirs: their names.
        ours: what it is here, or why it is not.
        waits: whether that hangs on a name that may not be here yet.
    """

    theirs: str
    ours: str
    waits: bool = False


def peer_rows(text: str) -> Iterator[PeerRow]:
    """The rows of a library's table."""
    for line in text.strip().splitlines():
        theirs, equals, ours = line.partition(" = ")
        if not equals:
            for name in line.split():
                yield PeerRow(name, "")
        else:
            yield PeerRow(theirs, ours.removeprefix("?"), ours.startswith("?"))
