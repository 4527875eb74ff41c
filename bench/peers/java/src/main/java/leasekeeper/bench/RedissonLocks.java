package leasekeeper.bench;

import io.netty.channel.EventLoopGroup;
import io.netty.channel.MultiThreadIoEventLoopGroup;
import io.netty.channel.nio.NioIoHandler;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.redisson.Redisson;
import org.redisson.api.RLock;
import org.redisson.api.RedissonClient;
import org.redisson.config.Config;

/** Redisson's locks, with the default settings but for what is said here. */
final class RedissonLocks {
  /** How long the lock of P3 is held: see {@code HOLD_S} of {@code adapters.py}. */
  static final Map<String, Long> HOLD_MS = Map.of("redisson", 5L, "redisson-fair", 0L);

  /** No run is so long that a lock would have to be renewed. */
  private static final long TTL_S = 30;

  /** As many as one client has by default; all share them. */
  private static final int LISTENER_THREADS = 16;

  private RedissonLocks() {}

  /** Locks of these names: over a client for each, or all over one. */
  static List<Lock> open(String peer, int port, List<String> names, boolean apart) {
    // Each client would have 32 threads for its connections. On one core, one thread costs least.
    int cores = Runtime.getRuntime().availableProcessors();
    var loops = new MultiThreadIoEventLoopGroup(cores, NioIoHandler.newFactory());
    var executor = Executors.newFixedThreadPool(LISTENER_THREADS);
    var locks = new ArrayList<Lock>();
    RedissonClient client = null;
    for (var name : names) {
      if (client == null || apart) {
        client = client(port, loops, executor);
      }
      boolean fair = peer.equals("redisson-fair");
      locks.add(locked(fair ? client.getFairLock(name) : client.getLock(name)));
    }
    return locks;
  }

  /**
   * A client with one connection, beside that for pub/sub. Commands share it: only a pool of ten or
   * more reserves one for each command, which takes half as much CPU again.
   */
  private static RedissonClient client(int port, EventLoopGroup loops, ExecutorService executor) {
    var config = new Config();
    config.setEventLoopGroup(loops).setExecutor(executor);
    config
        .useSingleServer()
        .setAddress("redis://127.0.0.1:" + port)
        .setConnectionMinimumIdleSize(1)
        .setConnectionPoolSize(1);
    return Redisson.create(config);
  }

  private static Lock locked(RLock lock) {
    return new Lock() {
      @Override
      public void acquire() {
        lock.lock(TTL_S, TimeUnit.SECONDS);
      }

      @Override
      public void release() {
        lock.unlock(); // It throws if the lock is somebody else's.
      }
    };
  }
}
