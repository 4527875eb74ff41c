package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// apart is between the first requests of P3, so that their order is known.
const apart = 10 * time.Millisecond

const (
	nobody = -1
	// never is later than any time.
	never = time.Duration(math.MaxInt64)
)

// line is what the waiters of P3 report; see `line.py`.
type line struct {
	mutex   sync.Mutex
	started time.Time
	// askedAt is of those who wait.
	askedAt, gaveBackAt []time.Duration
	passedOn            []chan struct{}
	// holder and last are places, or nobody: who has the lock, and who had it last.
	holder, last int
	releasedAt   time.Duration
	latenciesMS  []float64
	// grants are those counted of each waiter.
	grants                []float64
	outOfOrder, handedOff int64
}

func newLine(waiters int) *line {
	l := &line{
		started:    time.Now(),
		askedAt:    slices.Repeat([]time.Duration{never}, waiters),
		gaveBackAt: slices.Repeat([]time.Duration{never}, waiters),
		passedOn:   make([]chan struct{}, waiters),
		grants:     make([]float64, waiters),
		holder:     nobody,
		last:       nobody,
		releasedAt: never,
	}
	for place := range l.passedOn {
		l.passedOn[place] = make(chan struct{}, 1)
	}
	return l
}

// asks is reported before a waiter asks for the lock.
func (l *line) asks(place int) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.askedAt[place] = time.Since(l.started)
}

// granted is reported when a waiter has the lock. It fails if somebody else has it, too.
func (l *line) granted(place int, counts bool) error {
	now := time.Since(l.started)
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.holder != nobody {
		return fmt.Errorf("waiters %d and %d hold the same lock", l.holder, place)
	}
	l.holder = place
	lastAt := min(l.askedAt[place], l.gaveBackAt[place])
	l.askedAt[place] = never
	if counts && l.releasedAt != never {
		l.latenciesMS = append(l.latenciesMS, (now-l.releasedAt).Seconds()*1000)
		l.grants[place]++
		if slices.Min(l.askedAt) < lastAt {
			l.outOfOrder++
		}
	}
	l.handedOff++
	if l.last != nobody {
		l.passedOn[l.last] <- struct{}{}
	}
	l.last = place
	return nil
}

// givesBack is reported before a waiter releases the lock.
func (l *line) givesBack(place int) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.holder = nobody
	l.releasedAt = time.Since(l.started)
	l.gaveBackAt[place] = l.releasedAt
}

func (l *line) count() int64 {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.handedOff
}

// figures is what P3 reports. `fairness` is Jain's index over the grants of each waiter.
func (l *line) figures() (figures, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if len(l.latenciesMS) == 0 {
		return nil, errors.New("the lock was handed to nobody")
	}
	ordered := slices.Sorted(slices.Values(l.latenciesMS))
	percentile := func(share float64) float64 {
		return ordered[min(len(ordered)-1, int(float64(len(ordered))*share))]
	}
	sum, sumOfSquares := 0.0, 0.0
	for _, grants := range l.grants {
		sum += grants
		sumOfSquares += grants * grants
	}
	waiters := float64(len(l.grants))
	return figures{
		"p5_ms":        percentile(0.05),
		"p25_ms":       percentile(0.25),
		"p50_ms":       percentile(0.50),
		"p75_ms":       percentile(0.75),
		"p95_ms":       percentile(0.95),
		"p99_ms":       percentile(0.99),
		"p999_ms":      percentile(0.999),
		"hand_offs":    float64(len(ordered)),
		"out_of_order": float64(l.outOfOrder),
		"fairness":     sum * sum / (waiters * sumOfSquares),
		"least_share":  slices.Min(l.grants) / (sum / waiters),
	}, nil
}

// handOffs is P3: all locks have the same name. Who released asks again once the next holder has
// been seen.
func handOffs(locks []lock, window *window, hold time.Duration) (figures, error) {
	line := newLine(len(locks))
	work := func(place int) error {
		time.Sleep(time.Duration(place) * apart)
		for {
			line.asks(place)
			if err := locks[place].acquire(); err != nil {
				return err
			}
			if err := line.granted(place, window.open.Load()); err != nil {
				return err
			}
			if hold > 0 {
				time.Sleep(hold)
			}
			line.givesBack(place)
			if err := locks[place].release(); err != nil {
				return err
			}
			<-line.passedOn[place]
		}
	}
	found, err := window.during(len(locks), work, line.count)
	if err != nil {
		return nil, err
	}
	order, err := line.figures()
	for name, figure := range order {
		found[name] = figure
	}
	return found, err
}
