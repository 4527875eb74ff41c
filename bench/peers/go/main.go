// The load of P1, P2 and P3 on locks that have a client in Go: what `load.py`, `threads.py` and
// `line.py` do for those in Python. Prints one line of figures as JSON.
//
//	locks redsync P1 --port 6379 --server-pid 4711 --seconds 3
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"time"
)

// figures are what a shape reports: `rate` is what it counts, per second.
type figures map[string]float64

// lock is a worker's. One worker acquires and releases it, over and over.
type lock interface {
	// acquire returns when it is held, however long that takes.
	acquire() error
	// release returns when that is known to have been done.
	release() error
}

// peer is somebody else's lock, as its author means it to be used.
type peer struct {
	// open makes locks of these names. If `apart`, each has a connection of its own; else all share
	// one client, which has as many as it likes.
	open func(address string, names []string, apart bool) ([]lock, error)
	// hold is how long the lock of P3 is held: see HOLD_S of `adapters.py`.
	hold time.Duration
}

var peers = map[string]peer{
	"redsync":     {openRedsync, 5 * time.Millisecond},
	"rueidislock": {openRueidis, 5 * time.Millisecond},
}

// ttl is that of all locks. No run is so long that one would have to be renewed.
const ttl = 30 * time.Second

type shape struct {
	workers int
	// apart: see `peer.open`.
	apart bool
	// contested is whether all want the same lock, and hand-offs are timed.
	contested bool
	// countsForEach is what one cycle counts for.
	countsForEach float64
}

var shapes = map[string]shape{
	"P1": {workers: 50, countsForEach: 1},
	// A cycle is two messages, however many a peer makes of them.
	"P2": {workers: 50, apart: true, countsForEach: 2},
	"P3": {workers: 20, apart: true, contested: true, countsForEach: 1},
}

// names are those of a shape's locks. The process is in them, for a run that was ended holds some.
func (s shape) names() []string {
	names := make([]string, s.workers)
	for place := range names {
		names[place] = fmt.Sprintf("bench/%d/%d", os.Getpid(), place)
		if s.contested {
			names[place] = fmt.Sprintf("bench/%d/contested", os.Getpid())
		}
	}
	return names
}

func measure() (figures, error) {
	if len(os.Args) < 3 {
		return nil, fmt.Errorf("usage: %s PEER SHAPE --port PORT --server-pid PID", os.Args[0])
	}
	wanted, isPeer := peers[os.Args[1]]
	asked, isShape := shapes[os.Args[2]]
	if !isPeer || !isShape {
		return nil, fmt.Errorf("no such peer or shape: %s %s", os.Args[1], os.Args[2])
	}
	options := flag.NewFlagSet(os.Args[0], flag.ExitOnError)
	port := options.Int("port", 6379, "of 127.0.0.1")
	serverPID := options.Int("server-pid", 0, "whose CPU time is reported")
	warmUp := options.Float64("warm-up", 0.5, "seconds")
	measured := options.Float64("seconds", 3, "that count")
	_ = options.Parse(os.Args[3:]) // It exits itself.

	locks, err := wanted.open(fmt.Sprintf("127.0.0.1:%d", *port), asked.names(), asked.apart)
	if err != nil {
		return nil, err
	}
	window := &window{warmUp: seconds(*warmUp), measured: seconds(*measured), serverPID: *serverPID}
	var found figures
	if asked.contested {
		found, err = handOffs(locks, window, wanted.hold)
	} else {
		found, err = cycles(locks, window)
	}
	if err != nil {
		return nil, err
	}
	found["rate"] *= asked.countsForEach
	return found, nil
}

func seconds(count float64) time.Duration {
	return time.Duration(count * float64(time.Second))
}

func main() {
	found, err := measure()
	if err == nil {
		// Nothing is closed: who still waits for a lock ends with the process.
		err = json.NewEncoder(os.Stdout).Encode(found)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
