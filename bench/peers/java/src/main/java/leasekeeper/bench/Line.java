package leasekeeper.bench;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Semaphore;

/** What the waiters of P3 report; see {@code line.py}. */
final class Line {
  private static final int NOBODY = -1;

  /** Later than any time; times are since the start. */
  private static final long NEVER = Long.MAX_VALUE;

  /** Names of the percentiles that are reported, and their shares. */
  private static final Map<String, Double> SHARES = new LinkedHashMap<>();

  static {
    SHARES.put("p5_ms", 0.05);
    SHARES.put("p25_ms", 0.25);
    SHARES.put("p50_ms", 0.50);
    SHARES.put("p75_ms", 0.75);
    SHARES.put("p95_ms", 0.95);
    SHARES.put("p99_ms", 0.99);
    SHARES.put("p999_ms", 0.999);
  }

  private final long startedNs = System.nanoTime();

  /** Of those who wait. */
  private final long[] askedAtNs;

  private final long[] gaveBackAtNs;

  /** The grants that count, of each waiter. */
  private final double[] grants;

  private final List<Semaphore> passedOn = new ArrayList<>();
  private final List<Double> latenciesMs = new ArrayList<>();
  private int holder = NOBODY;
  private int last = NOBODY;
  private long releasedAtNs = NEVER;
  private long outOfOrder;
  private long handedOff;

  Line(int waiters) {
    askedAtNs = new long[waiters];
    gaveBackAtNs = new long[waiters];
    grants = new double[waiters];
    Arrays.fill(askedAtNs, NEVER);
    Arrays.fill(gaveBackAtNs, NEVER);
    for (int place = 0; place < waiters; place++) {
      passedOn.add(new Semaphore(0));
    }
  }

  private long nowNs() {
    return System.nanoTime() - startedNs;
  }

  /** A waiter is about to ask for the lock. */
  synchronized void asks(int place) {
    askedAtNs[place] = nowNs();
  }

  /**
   * A waiter has the lock.
   *
   * @throws IllegalStateException somebody else has it, too
   */
  void granted(int place, boolean counts) {
    long nowNs = nowNs();
    synchronized (this) {
      if (holder != NOBODY) {
        throw new IllegalStateException(
            "waiters %d and %d hold the same lock".formatted(holder, place));
      }
      holder = place;
      long lastAtNs = Math.min(askedAtNs[place], gaveBackAtNs[place]);
      askedAtNs[place] = NEVER;
      if (counts && releasedAtNs != NEVER) {
        latenciesMs.add((nowNs - releasedAtNs) / 1e6);
        grants[place]++;
        if (Arrays.stream(askedAtNs).min().getAsLong() < lastAtNs) {
          outOfOrder++;
        }
      }
      handedOff++;
      if (last != NOBODY) {
        passedOn.get(last).release();
      }
      last = place;
    }
  }

  /** A waiter is about to release the lock. */
  synchronized void givesBack(int place) {
    holder = NOBODY;
    releasedAtNs = nowNs();
    gaveBackAtNs[place] = releasedAtNs;
  }

  /** Returns when the next holder has been seen. */
  void awaitPassedOn(int place) throws InterruptedException {
    passedOn.get(place).acquire();
  }

  synchronized long handedOff() {
    return handedOff;
  }

  /** What P3 reports; {@code fairness} is Jain's index over the grants of each waiter. */
  synchronized Map<String, Double> figures() {
    if (latenciesMs.isEmpty()) {
      throw new IllegalStateException("the lock was handed to nobody");
    }
    var ordered = latenciesMs.stream().mapToDouble(Double::doubleValue).sorted().toArray();
    var figures = new LinkedHashMap<String, Double>();
    SHARES.forEach(
        (name, share) ->
            figures.put(
                name, ordered[Math.min(ordered.length - 1, (int) (ordered.length * share))]));
    double sum = Arrays.stream(grants).sum();
    double sumOfSquares = Arrays.stream(grants).map(each -> each * each).sum();
    figures.put("hand_offs", (double) ordered.length);
    figures.put("out_of_order", (double) outOfOrder);
    figures.put("fairness", sum * sum / (grants.length * sumOfSquares));
    figures.put("least_share", Arrays.stream(grants).min().getAsDouble() * grants.length / sum);
    return figures;
  }
}
