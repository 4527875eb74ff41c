package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// ticksASecond is USER_HZ, which is the same on every Linux.
const ticksASecond = 100

// window is the stretch of time that counts: after the warm-up, until the end.
type window struct {
	warmUp, measured time.Duration
	serverPID        int
	open             atomic.Bool
}

// reading is what has been used and counted up to a moment.
type reading struct {
	at                          time.Time
	counted, loadCPU, serverCPU float64
}

func (w *window) read(counted func() int64) (reading, error) {
	serverCPU, err := cpuOf(w.serverPID)
	if err != nil {
		return reading{}, err
	}
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return reading{}, err
	}
	loadCPU := time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
	return reading{time.Now(), float64(counted()), loadCPU, serverCPU}, nil
}

// cpuOf is the CPU time in seconds that another process has used so far.
func cpuOf(pid int) (float64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	afterName := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	user, err := strconv.ParseFloat(string(afterName[11]), 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseFloat(string(afterName[12]), 64)
	return (user + system) / ticksASecond, err
}

// during runs the workers until the time is over; what one of them fails with ends it all.
// `counted` says how far they are.
func (w *window) during(
	workers int, work func(place int) error, counted func() int64,
) (figures, error) {
	failed := make(chan error, workers)
	for place := range workers {
		go func() { failed <- work(place) }()
	}
	if err := waited(failed, w.warmUp); err != nil {
		return nil, err
	}
	before, err := w.read(counted)
	if err != nil {
		return nil, err
	}
	w.open.Store(true)
	if err := waited(failed, w.measured); err != nil {
		return nil, err
	}
	w.open.Store(false)
	after, err := w.read(counted)
	if err != nil {
		return nil, err
	}
	wall := after.at.Sub(before.at).Seconds()
	return figures{
		"rate":       (after.counted - before.counted) / wall,
		"load_cpu":   (after.loadCPU - before.loadCPU) / wall,
		"server_cpu": (after.serverCPU - before.serverCPU) / wall,
	}, nil
}

// waited returns when that time is over, or at once what a worker failed with.
func waited(failed <-chan error, duration time.Duration) error {
	select {
	case err := <-failed:
		return err
	case <-time.After(duration):
		return nil
	}
}

// cycles is P1 and P2: each worker has a lock of its own.
func cycles(locks []lock, window *window) (figures, error) {
	var count atomic.Int64
	work := func(place int) error {
		for {
			if err := locks[place].acquire(); err != nil {
				return err
			}
			if err := locks[place].release(); err != nil {
				return err
			}
			count.Add(1)
		}
	}
	return window.during(len(locks), work, count.Load)
}
