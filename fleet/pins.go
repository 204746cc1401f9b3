package fleet

import (
	"bytes"
	"cmp"
	"container/list"
	"net/netip"
	"slices"
	"sync"
	"time"

	"eboot"
)

// pinKey is what a pin belongs to.
type pinKey struct {
	slave netip.Addr
	erts  string
}

// pinTable holds the pins, the longest unused of which are forgotten. It is safe
// for use by several goroutines.
type pinTable struct {
	limit int

	mu      sync.Mutex
	byKey   map[pinKey]*list.Element
	order   *list.List // of eboot.Pin, latest used first
	version uint64     // rises with every change that the file should have
}

func newPinTable(limit int) *pinTable {
	return &pinTable{limit: limit, byKey: map[pinKey]*list.Element{}, order: list.New()}
}

// begin enters the pin of a boot that begins here, and returns it as entered: later
// than the one it replaces, though that may have come from a server whose clock is ahead.
func (t *pinTable) begin(p eboot.Pin) (eboot.Pin, error) {
	p = canonical(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, known := t.byKey[pinKey{p.Slave, p.ERTS}]; known {
		if old := e.Value.(eboot.Pin); !p.At.After(old.At) {
			p.At = old.At.Add(1)
		}
	}
	if err := checkPin(p); err != nil {
		return eboot.Pin{}, err
	}
	t.put(p)
	t.version++
	return p, nil
}

// sameBoot is how far apart two servers may place one boot: by their clocks, and by what
// they go by, the request for the script or the age of the slave's loader.
const sameBoot = time.Minute

// open enters the pin of a boot that goes on here, when none as late as it is known, and
// returns it as entered; else the zero Pin. A pin of the same bundle that is a little
// older is of the same boot: a thousand slaves that lost their server have nothing to tell.
func (t *pinTable) open(p eboot.Pin) (eboot.Pin, error) {
	p = canonical(p)
	if err := checkPin(p); err != nil {
		return eboot.Pin{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, known := t.byKey[pinKey{p.Slave, p.ERTS}]; known {
		old := e.Value.(eboot.Pin)
		if old.Manifest == p.Manifest && p.At.Sub(old.At) < sameBoot || !supersedes(p, old) {
			t.order.MoveToFront(e)
			return eboot.Pin{}, nil
		}
	}
	t.put(p)
	t.version++
	return p, nil
}

// merge enters a pin of another server when it supersedes what is known, and reports
// whether it did. When the table is full it takes the place of an older one only, so
// that two servers with full tables do not swap them for ever.
func (t *pinTable) merge(p eboot.Pin) bool {
	p = canonical(p)
	if checkPin(p) != nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e, known := t.byKey[pinKey{p.Slave, p.ERTS}]
	switch {
	case known && !supersedes(p, e.Value.(eboot.Pin)):
		return false
	case !known && t.order.Len() >= t.limit && !p.At.After(t.order.Back().Value.(eboot.Pin).At):
		return false
	}
	t.put(p)
	t.version++
	return true
}

// canonical returns p as every server has it. Its time has no monotonic reading: that
// would compare in another way here than where p is sent to.
func canonical(p eboot.Pin) eboot.Pin {
	p.Slave = p.Slave.Unmap()
	p.At = p.At.Round(0).UTC()
	return p
}

// supersedes reports whether p, of the same slave, stands when both are known: the
// later one, and of two at the same time, the one with the greater digest.
func supersedes(p, old eboot.Pin) bool {
	return cmp.Or(p.At.Compare(old.At), bytes.Compare(p.Manifest[:], old.Manifest[:])) > 0
}

func (t *pinTable) put(p eboot.Pin) {
	key := pinKey{p.Slave, p.ERTS}
	if e, known := t.byKey[key]; known {
		e.Value = p
		t.order.MoveToFront(e)
		return
	}
	if t.order.Len() >= t.limit {
		oldest := t.order.Remove(t.order.Back()).(eboot.Pin)
		delete(t.byKey, pinKey{oldest.Slave, oldest.ERTS})
	}
	t.byKey[key] = t.order.PushFront(p)
}

func (t *pinTable) get(key pinKey) (eboot.Pin, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, known := t.byKey[key]
	if !known {
		return eboot.Pin{}, false
	}
	t.order.MoveToFront(e) // the slave lives
	return e.Value.(eboot.Pin), true
}

// all returns the pins, longest unused first, and the version they are of.
func (t *pinTable) all() ([]eboot.Pin, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pins := make([]eboot.Pin, 0, t.order.Len())
	for e := t.order.Back(); e != nil; e = e.Prev() {
		pins = append(pins, e.Value.(eboot.Pin))
	}
	return pins, t.version
}

func (t *pinTable) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.order.Len()
}

func (t *pinTable) changedSince(version uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.version != version
}

// Pin returns the bundle that the latest boot of slave with ERTS version erts
// began with, on this server or on one whose pins were merged; false when it is not
// known.
func (f *Fleet) Pin(slave netip.Addr, erts string) (eboot.Pin, bool) {
	return f.pins.get(pinKey{slave.Unmap(), erts})
}

// Pins returns all pins in order of address and ERTS version.
func (f *Fleet) Pins() []eboot.Pin {
	pins, _ := f.pins.all()
	slices.SortFunc(pins, func(a, b eboot.Pin) int {
		return cmp.Or(a.Slave.Compare(b.Slave), cmp.Compare(a.ERTS, b.ERTS))
	})
	return pins
}

// MergePins takes in the pins that another server knows, and returns how many of
// them changed what this one knows: those of unknown slaves, and those later than its
// own; of two at the same time the one with the greater digest stands, so that all
// servers come to the same. They are kept, on disk too, as those of boots here.
// Pins that are none, and those there is no room for, are left out.
func (f *Fleet) MergePins(pins []eboot.Pin) (changed int) {
	for _, p := range pins {
		if f.pins.merge(p) {
			changed++
		}
	}
	if changed > 0 {
		f.wakeRun()
	}
	return changed
}
