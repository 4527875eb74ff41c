package leasekeeper.bench;

import java.util.List;
import java.util.Map;

/** P3: all locks have the same name. Who released asks again once the next holder has been seen. */
final class HandOffs {
  /** Between the first requests, so that their order is known. */
  private static final long APART_MS = 10;

  private HandOffs() {}

  static Map<String, Double> measure(List<Lock> locks, Window window, long holdMs)
      throws Exception {
    var line = new Line(locks.size());
    Window.Work work =
        place -> {
          var lock = locks.get(place);
          Thread.sleep(place * APART_MS);
          while (true) {
            line.asks(place);
            lock.acquire();
            line.granted(place, window.isOpen());
            if (holdMs > 0) {
              Thread.sleep(holdMs);
            }
            line.givesBack(place);
            lock.release();
            line.awaitPassedOn(place);
          }
        };
    var figures = window.during(locks.size(), work, line::handedOff);
    figures.putAll(line.figures());
    return figures;
  }
}
