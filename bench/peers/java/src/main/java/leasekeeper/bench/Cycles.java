package leasekeeper.bench;

import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicLong;

/** P1 and P2: each worker has a lock of its own. */
final class Cycles {
  private Cycles() {}

  static Map<String, Double> measure(List<Lock> locks, Window window) throws Exception {
    var count = new AtomicLong();
    Window.Work work =
        place -> {
          var lock = locks.get(place);
          while (true) {
            lock.acquire();
            lock.release();
            count.incrementAndGet();
          }
        };
    return window.during(locks.size(), work, count::get);
  }
}
