package leasekeeper.bench;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.stream.Collectors;

/**
 * The load of P1, P2 and P3 on locks that have a client in Java: what {@code load.py}, {@code
 * threads.py} and {@code line.py} do for those in Python. Prints one line of figures as JSON.
 *
 * <pre>java -jar locks.jar redisson P1 --port 6379 --server-pid 4711 --seconds 3</pre>
 */
public final class Main {
  /**
   * A load shape.
   *
   * @param apart whether each worker has a client of its own
   * @param contested whether all want the same lock, and hand-offs are timed
   * @param countsForEach what a cycle counts for: in P2 two messages, whatever a peer makes of it
   */
  private record Shape(int workers, boolean apart, boolean contested, int countsForEach) {
    /** Those of the locks. The process is in them, for a run that was ended holds some. */
    List<String> names() {
      var names = new ArrayList<String>();
      for (int place = 0; place < workers; place++) {
        var last = contested ? "contested" : Integer.toString(place);
        names.add("bench/%d/%s".formatted(ProcessHandle.current().pid(), last));
      }
      return names;
    }
  }

  private static final Map<String, Shape> SHAPES =
      Map.of(
          "P1", new Shape(50, false, false, 1),
          "P2", new Shape(50, true, false, 2),
          "P3", new Shape(20, true, true, 1));

  /** In seconds. After half a second most of the code is not yet compiled, and thrice as slow. */
  private static final String WARM_UP = "10";

  private Main() {}

  private static Map<String, Double> measure(String peer, Shape shape, Map<String, String> options)
      throws Exception {
    int port = Integer.parseInt(options.get("--port"));
    var locks = RedissonLocks.open(peer, port, shape.names(), shape.apart());
    var window =
        new Window(
            Double.parseDouble(options.getOrDefault("--warm-up", WARM_UP)),
            Double.parseDouble(options.getOrDefault("--seconds", "3")),
            Long.parseLong(options.get("--server-pid")));
    if (shape.contested()) {
      return HandOffs.measure(locks, window, RedissonLocks.HOLD_MS.get(peer));
    }
    var figures = Cycles.measure(locks, window);
    figures.computeIfPresent("rate", (name, rate) -> rate * shape.countsForEach());
    return figures;
  }

  private static Map<String, String> options(List<String> words) {
    var options = new LinkedHashMap<String, String>();
    for (int place = 0; place + 1 < words.size(); place += 2) {
      options.put(words.get(place), words.get(place + 1));
    }
    return options;
  }

  /** Makes the load that the command line asks for. */
  public static void main(String[] words) {
    try {
      if (words.length < 2
          || !RedissonLocks.HOLD_MS.containsKey(words[0])
          || !SHAPES.containsKey(words[1])) {
        throw new IllegalArgumentException("PEER SHAPE --port PORT --server-pid PID");
      }
      var options = options(Arrays.asList(words).subList(2, words.length));
      var figures = measure(words[0], SHAPES.get(words[1]), options);
      System.out.println(
          figures.entrySet().stream()
              .map(each -> String.format(Locale.ROOT, "\"%s\": %f", each.getKey(), each.getValue()))
              .collect(Collectors.joining(", ", "{", "}")));
      System.out.flush();
      // Nothing is closed: who still waits for a lock ends with the process.
      Runtime.getRuntime().halt(0);
    } catch (Exception problem) {
      problem.printStackTrace();
      Runtime.getRuntime().halt(1);
    }
  }
}
