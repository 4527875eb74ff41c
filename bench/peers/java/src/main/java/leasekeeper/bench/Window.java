package leasekeeper.bench;

import com.sun.management.OperatingSystemMXBean;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.LongSupplier;

/** The stretch of time that counts: after the warm-up, until the end. */
final class Window {
  /** What a worker does; it returns only by failing. */
  interface Work {
    void run(int place) throws Exception;
  }

  /** USER_HZ, which is the same on every Linux. */
  private static final double TICKS_A_SECOND = 100;

  private static final OperatingSystemMXBean SYSTEM =
      ManagementFactory.getPlatformMXBean(OperatingSystemMXBean.class);

  private final double warmUpS;
  private final double measuredS;
  private final long serverPid;
  private volatile boolean open;

  Window(double warmUpS, double measuredS, long serverPid) {
    this.warmUpS = warmUpS;
    this.measuredS = measuredS;
    this.serverPid = serverPid;
  }

  /** Whether what happens now counts. */
  boolean isOpen() {
    return open;
  }

  /** What has been used and counted up to a moment. */
  private record Reading(double atS, double counted, double loadCpuS, double serverCpuS) {}

  private Reading read(LongSupplier counted) throws IOException {
    double loadCpuS = SYSTEM.getProcessCpuTime() / 1e9;
    return new Reading(System.nanoTime() / 1e9, counted.getAsLong(), loadCpuS, serverCpuS());
  }

  private double serverCpuS() throws IOException {
    var stat = Files.readString(Path.of("/proc/%d/stat".formatted(serverPid)));
    var afterName = stat.substring(stat.lastIndexOf(')') + 2).split(" ");
    return (Long.parseLong(afterName[11]) + Long.parseLong(afterName[12])) / TICKS_A_SECOND;
  }

  /**
   * Runs the workers until the time is over; what one of them fails with ends it all.
   *
   * @param counted says how far they are
   */
  Map<String, Double> during(int workers, Work work, LongSupplier counted) throws Exception {
    var failed = new LinkedBlockingQueue<Exception>();
    for (int each = 0; each < workers; each++) {
      int place = each;
      var thread =
          new Thread(
              () -> {
                try {
                  work.run(place);
                } catch (Exception problem) {
                  failed.add(problem);
                }
              });
      thread.setDaemon(true);
      thread.start();
    }
    await(failed, warmUpS);
    var before = read(counted);
    open = true;
    await(failed, measuredS);
    open = false;
    var after = read(counted);
    double wallS = after.atS - before.atS;
    var figures = new LinkedHashMap<String, Double>();
    figures.put("rate", (after.counted - before.counted) / wallS);
    figures.put("load_cpu", (after.loadCpuS - before.loadCpuS) / wallS);
    figures.put("server_cpu", (after.serverCpuS - before.serverCpuS) / wallS);
    return figures;
  }

  private static void await(BlockingQueue<Exception> failed, double seconds) throws Exception {
    var problem = failed.poll((long) (seconds * 1e6), TimeUnit.MICROSECONDS);
    if (problem != null) {
      throw problem;
    }
  }
}
