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
	DefaultBoots        = 131_072
	DefaultFinishedEach = 16
	DefaultPins         = 65_536
	DefaultFollowers    = 64
)

const (
	quietAfter = time.Second            // without a request: the boot is done
	checkEvery = 250 * time.Millisecond // how often loading boots are looked at
	movedEvery = 15 * time.Second       // how often OnBoot is told of boots that only count on
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

	// OnBoot is told of each change of a boot that this server observes, and every 15 s of those
	// that only asked for more; OnEvent of each event that it observes. They are called under
	// the lock of the Fleet: they must neither block nor call it. nil: nobody is told.
	OnBoot  func(eboot.Boot)
	OnEvent func(eboot.Event)

	Addresses    int // addresses remembered; those with open connections always are
	Finished     int // boots in all that no connection here carries: finished, or of other servers; DefaultBoots
	FinishedEach int // of them, those of one address
	Pins         int
	Followers    int // Follow calls at the same time, and FollowEvents calls
}

// Fleet remembers slaves. All methods may be called from any goroutine, before,
// during and after Run.
type Fleet struct {
	options Options
	pins    *pinTable
	plans   *planTable

	wake chan struct{} // holds one token: there is something for Run to look at

	mu sync.Mutex
	addressTable
	bootTable
	eventTable
	open      int    // connections
	begun     uint64 // boots, here
	failed    uint64 // likewise
	followers map[*follower]struct{}
	stopped   bool // Run has ended: nobody serves followers any more
}

// addressTable is what is known of addresses. Guarded by Fleet.mu.
type addressTable struct {
	addresses map[netip.Addr]*address
	strangers *list.List // of *address that were never answered nor connected, latest used first
	idle      *list.List // of *address that were, and have no connection now, latest used first
}

// bootTable finds boots. Guarded by Fleet.mu.
type bootTable struct {
	byID     map[string]*boot
	finished *list.List         // of *boot without a connection here, latest changed first
	carried  map[*boot]struct{} // with one
	loading  map[*boot]struct{} // of them, those that have not come to their end
	gone     map[*boot]struct{} // whose slave left too early, a moment ago
	nextID   uint64
	names    names
}

// address is what is known of one address. Guarded by Fleet.mu.
type address struct {
	sighting    eboot.Sighting // without what the open connections know
	seen        bool           // here: it asked or connected
	refused     []refusal      // latest of each ERTS version
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
		{&o.Addresses, DefaultAddresses}, {&o.Finished, DefaultBoots}, {&o.FinishedEach, DefaultFinishedEach},
		{&o.Pins, DefaultPins}, {&o.Followers, DefaultFollowers},
	} {
		if *n.value <= 0 {
			*n.value = n.standard
		}
	}
	f := &Fleet{
		options:      o,
		pins:         newPinTable(o.Pins),
		plans:        newPlanTable(standardPlans),
		wake:         make(chan struct{}, 1),
		addressTable: addressTable{addresses: map[netip.Addr]*address{}, strangers: list.New(), idle: list.New()},
		bootTable: bootTable{
			byID: map[string]*boot{}, finished: list.New(), carried: map[*boot]struct{}{},
			loading: map[*boot]struct{}{}, gone: map[*boot]struct{}{}, nextID: uint64(o.Now().UnixNano()), names: names{},
		},
		eventTable: eventTable{known: map[string]struct{}{}, readers: map[chan eboot.Event]struct{}{}},
		followers:  map[*follower]struct{}{},
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

// Run finds boots that became quiet or failed, and writes pins and plans, until ctx ends.
// Then it ends every Follow and FollowEvents, and writes them a last time; the error is that of these writes.
func (f *Fleet) Run(ctx context.Context) error {
	pins := pinWriter(f.pins, f.options.PinFile, f.options.Logger)
	plans := planWriter(f.plans, f.options.PlanFile, f.options.Logger)
	var check, moved <-chan time.Time // nil while there is nothing to look at
	for {
		restless, carrying := f.restless()
		if check == nil && restless {
			check = time.After(checkEvery)
		}
		if moved == nil && carrying && f.options.OnBoot != nil {
			moved = time.After(movedEvery)
		}
		select {
		case <-f.wake:
		case <-check:
			check = nil
			f.checkLoading()
			f.checkGone()
			f.tellLost()
		case <-moved:
			moved = nil
			f.tellMoved()
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

// restless reports whether something may change by time alone, and whether requests may be
// counted to some boot.
func (f *Fleet) restless() (restless, carrying bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.loading) > 0 || len(f.gone) > 0 || f.anyLost(), len(f.carried) > 0
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
	a.seen = true
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
	for _, b := range a.boots { // none is carried: a has no connection
		f.drop(b)
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

// Sighting returns what this server knows of slave; false when it never saw it, or has
// forgotten it.
func (f *Fleet) Sighting(slave netip.Addr) (eboot.Sighting, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, known := f.addresses[slave.Unmap()]
	if !known || !a.seen {
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
	Addresses   int    // remembered, those only other servers saw included
	Connections int    // open
	Loading     int    // boots under way here
	Finished    int    // boots remembered that no connection here carries
	Boots       int    // boots remembered in all
	Begun       uint64 // boots here since the start
	Failed      uint64 // of them
	Pins        int
	Plans       int
}

// Stats returns the numbers of this moment.
func (f *Fleet) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Stats{
		Addresses: len(f.addresses), Connections: f.open, Loading: len(f.loading), Finished: f.finished.Len(),
		Boots: len(f.byID), Begun: f.begun, Failed: f.failed, Pins: f.pins.size(), Plans: f.plans.size(),
	}
}
