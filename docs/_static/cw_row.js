// One row of the CW loss and its gradients, in the numbers of JavaScript: the formula of csrc/cw_row.h and
// cw_ext/reference.py once more, for the playground. tests/documentation/test_playground.py compares the two.
"use strict";

const CwRow = (() => {
  // The defaults of cw_ext, by their names there. null stands for None.
  const DEFAULTS = Object.freeze({
    temperature: 0.1,
    prior: 0,
    weighting: "sigmoid",
    weight_temperature: null,
    positive_temperature: null,
    detach_weights: true,
    normalize_weights: false,
    floor: 0.3,
    min_margin: null,
    confidence_temperature: null,
    confidence_threshold: 0,
    include_positive: false,
    surrogate: "exp",
  });

  // ---- scalar functions ---------------------------------------------------------------------------------------------

  const sigmoid = (x) => {
    const e = Math.exp(-Math.abs(x));
    return (x < 0 ? e : 1) / (1 + e);
  };
  const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
  const logPositive = (x) => (x > 0 ? Math.log(x) : -Infinity);

  // log Σ e^x, and −∞ of nothing.
  const logSum = (exponents) => {
    const max = exponents.reduce((a, b) => Math.max(a, b), -Infinity);
    if (max === -Infinity) return max;
    return max + Math.log(exponents.reduce((sum, x) => sum + Math.exp(x - max), 0));
  };

  // ---- one element, with d = s − s⁺ ---------------------------------------------------------------------------------

  // ρ
  const weightTemperature = (p) => p.weight_temperature ?? (p.weighting === "sigmoid" ? p.temperature : 1);

  // log ω(d)
  const logWeight = (d, p) => {
    const y = d / weightTemperature(p);
    switch (p.weighting) {
      case "sigmoid": return -softplus(y);
      case "exponential": return -y;
      case "linear": return logPositive(1 - y);
      default: return 0;
    }
  };

  // d log ω / dd, where ω > 0
  const weightSlope = (d, p) => {
    const rho = weightTemperature(p);
    switch (p.weighting) {
      case "sigmoid": return -sigmoid(d / rho) / rho;
      case "exponential": return -1 / rho;
      case "linear": return -1 / (rho - d);
      default: return 0;
    }
  };

  // φ(d), the logarithm of exp(d/τ) or of the surrogate in its place
  const logSurrogate = (d, p) => {
    switch (p.surrogate) {
      case "tanh": return (Math.LN2 - softplus(-2 * d)) / p.temperature;
      case "atan": return logPositive(Math.atan(d) + 1) / p.temperature;
      case "relu": return logPositive(d + 1) / p.temperature;
      default: return d / p.temperature;
    }
  };

  // dφ/dd, where the surrogate is > 0
  const surrogateSlope = (d, p) => {
    switch (p.surrogate) {
      case "tanh": return 2 * sigmoid(-2 * d) / p.temperature;
      case "atan": return 1 / (p.temperature * (1 + d * d) * (1 + Math.atan(d)));
      case "relu": return 1 / (p.temperature * (1 + d));
      default: return 1 / p.temperature;
    }
  };

  const logMass = (d, p) => logWeight(d, p) + logSurrogate(d, p);

  // d log(ω e^φ) / dd as the gradient sees it: a detached weight is a constant.
  const slope = (d, p) => surrogateSlope(d, p) + (p.detach_weights ? 0 : weightSlope(d, p));

  // Its gradient, from the logarithm of its share of the sum and the sum's derivative. No share, no gradient.
  const gradient = (d, logShare, bySum, p) => (logShare > -Infinity ? bySum * Math.exp(logShare) * slope(d, p) : 0);

  // ---- one row ------------------------------------------------------------------------------------------------------

  /**
   * The loss of a row, and its gradient in every score.
   *
   * @param {{pos: number, negatives: number[], extras?: number[], logWeights?: number[]}} scores s⁺, s_j, s_k and
   *   log q_j. All scores are finite; a log weight of −∞ masks its negative out.
   * @param {object} given loss arguments by their names in cw_ext; what is missing has its default.
   * @returns {object} loss; live, whether there is any negative mass; binds, whether the floor does; logA, logC; taken,
   *   the share of the negative mass that the correction would take without a floor; confidence; weights ω(d_j) and
   *   shares of the negatives' sum; gradients {pos, negatives, extras}; ofNegative(d), the gradient of a negative of
   *   this row at another margin, were the rest of the row unchanged.
   */
  function row(scores, given = {}) {
    const p = { ...DEFAULTS, ...given };
    const { pos, negatives, extras = [], logWeights = negatives.map(() => 0) } = scores;
    const margins = negatives.map((s) => s - pos);
    const weights = margins.map((d) => Math.exp(logWeight(d, p)));

    // A, the weighted mean over the negatives
    const masses = margins.map((d, j) => logWeights[j] + logMass(d, p));
    const parts = margins.map((d, j) => logWeights[j] + (p.normalize_weights ? logWeight(d, p) : 0));
    const sumOfMasses = logSum(masses);
    const sumOfParts = logSum(parts);
    const logA = sumOfMasses - sumOfParts;
    const n = logWeights.filter((q) => q !== -Infinity).length;
    if (sumOfMasses === -Infinity) {
      return {
        loss: 0, live: false, binds: false, logA: -Infinity, logC: -Infinity, taken: 0, confidence: 1, weights,
        shares: margins.map(() => 0), ofNegative: () => 0,
        gradients: { pos: 0, negatives: margins.map(() => 0), extras: extras.map(() => 0) },
      };
    }

    // C, the mean over the extra positives; with none of them ω(0)
    const extraMargins = extras.map((s) => s - pos);
    const extraMasses = extraMargins.map((d) => logMass(d, p));
    const sumOfExtras = logSum(extraMasses);
    const logC = extras.length === 0 ? logWeight(0, p) : sumOfExtras - Math.log(extras.length);

    // G = max(A − πC, floor) / (1 − π)
    const ratio = Math.exp(Math.min(logC - logA, 80));
    const taken = p.prior * ratio;
    const left = 1 - taken;
    const hasMinMargin = p.min_margin !== null;
    let binds, logG;
    if (hasMinMargin) {
      const corrected = left > 0 ? logA + Math.log1p(-taken) : -Infinity;
      binds = corrected <= p.min_margin / p.temperature;
      logG = binds ? p.min_margin / p.temperature : corrected;
    } else {
      binds = left <= p.floor;
      logG = logA + (binds ? Math.log(p.floor) : Math.log1p(-taken));
    }
    logG -= Math.log1p(-p.prior);

    // L, and the row's loss
    const logNG = Math.log(n) + logG;
    const positiveSlope = p.positive_temperature === null ? 0 : 1 / p.temperature - 1 / p.positive_temperature;
    const value = (p.include_positive ? softplus(logNG) : logNG) + pos * positiveSlope;
    const z = p.confidence_temperature === null ? 0 : (pos - p.confidence_threshold) / p.confidence_temperature;
    const confidence = 2 * sigmoid(z);
    const confidenceSlope = p.confidence_temperature === null ? 0 : confidence * sigmoid(-z) / p.confidence_temperature;

    // Derivatives by log A and log C, and from these the gradients
    const byLogG = confidence * (p.include_positive ? sigmoid(logNG) : 1);
    const byLogA = byLogG * (binds ? (hasMinMargin ? 0 : 1) : 1 / left);
    const byLogC = binds ? 0 : (-byLogG * taken) / left;
    const ofMargin = (d, logQ) => {
      const throughSum = gradient(d, logQ + logMass(d, p) - sumOfMasses, byLogA, p);
      if (!p.normalize_weights || p.detach_weights) return throughSum;
      const logPart = logQ + logWeight(d, p) - sumOfParts;
      return throughSum - (logPart > -Infinity ? byLogA * Math.exp(logPart) * weightSlope(d, p) : 0);
    };
    const ofNegatives = margins.map((d, j) => ofMargin(d, logWeights[j]));
    const ofExtras = extraMargins.map((d, k) => gradient(d, extraMasses[k] - sumOfExtras, byLogC, p));
    const total = [...ofNegatives, ...ofExtras].reduce((a, b) => a + b, 0);

    return {
      loss: confidence * value,
      live: true,
      binds,
      logA,
      logC,
      taken,
      confidence,
      weights,
      shares: masses.map((x) => Math.exp(x - sumOfMasses)),
      ofNegative: (d) => ofMargin(d, 0),
      gradients: {
        pos: confidenceSlope * value + confidence * positiveSlope - total,
        negatives: ofNegatives,
        extras: ofExtras,
      },
    };
  }

  return Object.freeze({ DEFAULTS, row, weightTemperature });
})();
