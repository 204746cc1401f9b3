package fleet

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"eboot"
)

// Bounds of what a Fleet remembers when Options say nothing.
const (
	DefaultAddresses    = 65_536
	DefaultFinished     = 4096
	DefaultFinishedEach = 16
	DefaultPins         = 65_536
	DefaultFollowers    = 64
)

const (
	quietAfter = time.Second            // without a request: the boot is done
	checkEvery = 250 * time.Millisecond // how often loading boots are looked at
	maxText    = 256                    // bytes of a remote text that are kept
	maxERTS    = 32                     // bytes of an ERTS version that are kept
)

// Options say what a Fleet may hold. Zero numbers mean the defaults.
type Options struct {
	Server   string           // id of this server, for Boot.Server
	PinFile  string           // where pins are kept; empty: in memory only
	PlanFile string           // where learned plans are kept; empty: in memory only
	Now      func() time.Time // nil: time.Now
	Logger   hclog.Logger     // nil: nothing is logged

	Addresses    int // addresses remembered; those with open connections always are
	Finished     int // finished boots in all
	FinishedEach int // finished boots of one address
	Pins         int
	Followers    int // Follow calls at the same time
}

// Fleet remembers slaves. All methods may be called from any goroutine, before,
// during and after Run.
type Fleet struct {
	options Options
	pins    *pinTable
	plans   *planTable

	wake chan struct{} // holds one token: there is something for Run to look at

	mu        sync.Mutex
	addresses map[netip.Addr]*address
	strangers *list.List // of *address that were never answered nor connected, latest used first
	idle      *list.List // of *address that were, and have no connection now, latest used first
	finished  *list.List // of *boot in phase closed, newest first
	loading   map[*boot]struct{}
	open      int // connections
	begun     uint64
	followers map[*follower]struct{}
	stopped   bool // Run has ended: nobody serves followers any more
}

// address is what is known of one address. Guarded by Fleet.mu.
type address struct {
	sighting    eboot.Sighting // without what the open connections know
	connections map[*Connection]struct{}
	uncoveredAt time.Time
	boots       []*boot // oldest first
	place       *list.Element
	list        *list.List // where place is; nil while connections are open
}

// New loads the pins of Options.PinFile and the plans of Options.PlanFile and returns a
// Fleet; it starts nothing. A file that is damaged is set aside with a warning. The error
// is that of a file that exists and cannot be read.
func New(o Options) (*Fleet, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	for _, n := range []struct {
		value    *int
		standard int
	}{
		{&o.Addresses, DefaultAddresses}, {&o.Finished, DefaultFinished}, {&o.FinishedEach, DefaultFinishedEach},
		{&o.Pins, DefaultPins}, {&o.Followers, DefaultFollowers},
	} {
		if *n.value <= 0 {
			*n.value = n.standard
		}
	}
	f := &Fleet{
		options:   o,
		pins:      newPinTable(o.Pins),
		plans:     newPlanTable(standardPlans),
		wake:      make(chan struct{}, 1),
		addresses: map[netip.Addr]*address{},
		strangers: list.New(),
		idle:      list.New(),
		finished:  list.New(),
		loading:   map[*boot]struct{}{},
		followers: map[*follower]struct{}{},
	}
	if o.PinFile != "" {
		if err := f.pins.load(o.PinFile, o.Logger); err != nil {
			return nil, fmt.Errorf("load pins: %w", err)
		}
	}
	if o.PlanFile != "" {
		if err := f.plans.load(o.PlanFile, o.Logger); err != nil {
			return nil, fmt.Errorf("load plans: %w", err)
		}
	}
	return f, nil
}

// Run finds boots that became quiet and writes pins and plans, until ctx ends. Then it
// ends every Follow and writes them a last time; the error is that of these writes.
func (f *Fleet) Run(ctx context.Context) error {
	pins := pinWriter(f.pins, f.options.PinFile, f.options.Logger)
	plans := planWriter(f.plans, f.options.PlanFile, f.options.Logger)
	var check <-chan time.Time // nil while there is nothing to look at
	for {
		if check == nil && f.restless() {
			check = time.After(checkEvery)
		}
		select {
		case <-f.wake:
		case <-check:
			check = nil
			f.checkQuiet()
			f.tellLost()
		case <-pins.due():
			pins.write()
		case <-plans.due():
			plans.write()
		case <-ctx.Done():
			f.endFollowers()
			return errors.Join(pins.finish(), plans.finish())
		}
	}
}

// restless reports whether something may change by time alone.
func (f *Fleet) restless() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.loading) > 0 || f.anyLost()
}

// wakeRun makes Run look again.
func (f *Fleet) wakeRun() {
	select {
	case f.wake <- struct{}{}:
	default: // it has been told
	}
}

// Discovered notes that slave asked for a boot server of ERTS version erts, and
// whether it was answered: refusal is empty, or says why not.
func (f *Fleet) Discovered(slave netip.Addr, erts, refusal string) {
	slave = slave.Unmap()
	now := f.options.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.address(slave)
	s := &a.sighting
	s.AskedAt, s.Answered = now, refusal == ""
	if s.AskedERTS != erts { // the usual repeat costs no copy
		s.AskedERTS = printable(erts, maxERTS)
	}
	if s.Refusal != refusal {
		s.Refusal = printable(refusal, maxText)
	}
	switch {
	case a.list == nil: // connected
	case s.Answered && a.list == f.strangers:
		a.leave()
		a.enter(f.idle)
	default:
		a.list.MoveToFront(a.place)
	}
}

// address returns what is known of slave, and makes room for it when it is new.
func (f *Fleet) address(slave netip.Addr) *address {
	a, known := f.addresses[slave]
	if known {
		return a
	}
	for len(f.addresses) >= f.options.Addresses {
		oldest := f.strangers.Back()
		if oldest == nil {
			oldest = f.idle.Back()
		}
		if oldest == nil {
			break // all have connections, which are bounded elsewhere
		}
		f.forget(oldest.Value.(*address))
	}
	a = &address{sighting: eboot.Sighting{Slave: slave}, connections: map[*Connection]struct{}{}}
	f.addresses[slave] = a
	a.enter(f.strangers)
	return a
}

func (f *Fleet) forget(a *address) {
	a.leave()
	for _, b := range a.boots { // all finished: a has no connection
		f.finished.Remove(b.place)
	}
	delete(f.addresses, a.sighting.Slave)
}

func (a *address) enter(l *list.List) { a.list, a.place = l, l.PushFront(a) }

func (a *address) leave() {
	if a.list != nil {
		a.list.Remove(a.place)
		a.list, a.place = nil, nil
	}
}

// Sighting returns what is known of slave; false when it was never seen, or was
// forgotten.
func (f *Fleet) Sighting(slave netip.Addr) (eboot.Sighting, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, known := f.addresses[slave.Unmap()]
	if !known {
		return eboot.Sighting{}, false
	}
	s := a.sighting
	s.Connections = len(a.connections)
	uncoveredAt := a.uncoveredAt
	for c := range a.connections {
		c.addTo(&s, &uncoveredAt)
	}
	return s, true
}

// Stats are numbers for graphs.
type Stats struct {
	Addresses   int    // remembered
	Connections int    // open
	Loading     int    // boots in phase loading
	Finished    int    // boots in phase closed that are remembered
	Begun       uint64 // boots since the start
	Pins        int
	Plans       int
}

// Stats returns the numbers of this moment.
func (f *Fleet) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Stats{
		Addresses: len(f.addresses), Connections: f.open, Loading: len(f.loading),
		Finished: f.finished.Len(), Begun: f.begun, Pins: f.pins.size(), Plans: f.plans.size(),
	}
}
