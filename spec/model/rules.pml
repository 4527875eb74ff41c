/* The rules of one name, as every script keeps them: leasekeeper/store/redis/lua/rules.lua in small.
 *
 * `lease.pml` and `queue.pml` include this. Time is counted in ticks, as what is *left*, so that
 * the states stay few; all timers lose one in the same tick. A lease id is a number from 1 on, and
 * tells its client: L % N gives it. The includer says how many clients there are (N), how long a
 * lease (TTL) and a server's word for a waiter (WORD) last, and what happens at a grant (on_grant).
 */

#define NOBODY 0
#define CLIENT(lease) ((lease) % N)

byte holder;                    /* lock: the lease id that has the name */
byte left;                      /* its time to live; 0: it is over */
chan queue = [N] of { byte };   /* queue: waiting lease ids, the first is next */
byte queued[N];                 /* which lease id of a client is in the queue; 0: none */
byte word[N];                   /* UNTIL of a waiter: how long its server's word lasts yet */

byte head;                      /* scratch: 0 between steps */

/* STEP-2, STEP-5: a waiter of another server than the one that acts has it for its word at first. */
inline grant(lease, provisional) {
  holder = lease;
  left = TTL;
#ifndef WHOLE_TTL_FOR_THE_DEAD
  if
  :: provisional && word[CLIENT(lease)] < TTL -> left = word[CLIENT(lease)]
  :: else
  fi;
#endif
  word[CLIENT(lease)] = 0;
  on_grant(lease, provisional)
}

/* STEP-1: lets time pass. `by`: the server that acts; `may`: it knows of no reason not to grant. */
inline advance(by, may) {
  if
  :: holder != NOBODY && left == 0 -> on_end(); holder = NOBODY
  :: else
  fi;
  do
  :: empty(queue) -> break
  :: nempty(queue) ->
    queue?<head>;
    if
#ifdef DEAD_STAY_QUEUED
    :: word[CLIENT(head)] == 0 -> break
#else
    :: word[CLIENT(head)] == 0 -> queue?head; queued[CLIENT(head)] = NOBODY; on_drop(head)
#endif
    :: word[CLIENT(head)] > 0 && may && holder == NOBODY ->
      queue?head;
      queued[CLIENT(head)] = NOBODY;
      grant(head, SERVER(CLIENT(head)) != by)
    :: word[CLIENT(head)] > 0 && !(may && holder == NOBODY) -> break
    fi
  od;
  head = NOBODY
}

inline enqueue(lease) {
  queue!lease;
  queued[CLIENT(lease)] = lease;
  word[CLIENT(lease)] = WORD
}

inline leave_queue(lease) {
  queue??eval(lease);
  queued[CLIENT(lease)] = NOBODY;
  word[CLIENT(lease)] = 0
}

inline elapse(timer) {
  if
  :: timer > 0 -> timer--
  :: else
  fi
}
