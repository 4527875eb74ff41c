package leasekeeper.bench;

/** A worker's lock. One thread acquires and releases it, over and over. */
interface Lock {
  /** Returns when it is held, however long that takes. */
  void acquire();

  /** Returns when that is known to have been done. */
  void release();
}
