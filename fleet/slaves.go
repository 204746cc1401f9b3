package fleet

import (
	"cmp"
	"net/netip"
	"slices"

	"eboot"
)

// SlaveRecord is what is remembered of a slave with one ERTS version, whichever servers it
// booted from.
type SlaveRecord struct {
	Slave    netip.Addr
	ERTS     string
	Latest   eboot.Boot // the one that began last
	Boots    int
	Failures int // of them
}

// Boots returns the boots that are remembered, of all servers, newest first.
func (f *Fleet) Boots() []eboot.Boot { return f.boots(func(*boot) bool { return true }) }

func (f *Fleet) boots(wanted func(*boot) bool) []eboot.Boot {
	f.mu.Lock()
	boots := make([]eboot.Boot, 0, len(f.byID))
	for _, a := range f.addresses {
		for _, b := range a.boots {
			if wanted(b) {
				boots = append(boots, b.snapshot())
			}
		}
	}
	f.mu.Unlock()
	return newestFirst(boots)
}

// BootsOf returns the boots of one slave that are remembered, of all servers, newest first.
func (f *Fleet) BootsOf(slave netip.Addr) []eboot.Boot {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, known := f.addresses[slave.Unmap()]
	if !known {
		return nil
	}
	var boots []eboot.Boot
	for _, b := range a.boots {
		boots = append(boots, b.snapshot())
	}
	return newestFirst(boots)
}

// RolloutBoots returns, for each of the rollouts with these ids, the boots that it caused:
// those of a slave with one ERTS version together, oldest first, and slaves in no order.
func (f *Fleet) RolloutBoots(ids map[string]bool) map[string][][]eboot.Boot {
	found := map[string][][]eboot.Boot{}
	if len(ids) == 0 {
		return found
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	id, wanted := "", false
	for _, a := range f.addresses {
		var groups [][]eboot.Boot // of a slave and a rollout each: hardly ever more than one
		for i, b := range a.boots {
			if b.known.Rollout == "" {
				continue
			}
			if b.known.Rollout != id { // most are of the same
				id = b.known.Rollout
				wanted = ids[id]
			}
			if !wanted {
				continue
			}
			g := slices.IndexFunc(groups, func(boots []eboot.Boot) bool { return boots[0].Rollout == id && boots[0].ERTS == b.known.ERTS })
			if g < 0 {
				g = len(groups)
				groups = append(groups, make([]eboot.Boot, 0, len(a.boots)-i))
			}
			if len(b.carriers) == 0 {
				groups[g] = append(groups[g], b.known) // without another copy: there may be many
			} else {
				groups[g] = append(groups[g], b.snapshot())
			}
		}
		for _, boots := range groups {
			found[boots[0].Rollout] = append(found[boots[0].Rollout], boots)
		}
	}
	return found
}

func newestFirst(boots []eboot.Boot) []eboot.Boot {
	return sorted(boots, func(a, b *eboot.Boot) int {
		return cmp.Or(b.Began.Compare(a.Began), a.Slave.Compare(b.Slave))
	})
}

// Slaves returns the slaves that booted, from whichever server, by address and ERTS version.
func (f *Fleet) Slaves() []SlaveRecord {
	f.mu.Lock()
	records := make([]SlaveRecord, 0, len(f.addresses))
	for _, a := range f.addresses {
		records = a.appendRecords(records)
	}
	f.mu.Unlock()
	return sorted(records, func(a, b *SlaveRecord) int {
		return cmp.Or(a.Slave.Compare(b.Slave), cmp.Compare(a.ERTS, b.ERTS))
	})
}

// appendRecords appends a record for each ERTS version that a booted.
func (a *address) appendRecords(records []SlaveRecord) []SlaveRecord {
	first := len(records)
	for _, b := range slices.Backward(a.boots) { // the latest first
		i := first
		for i < len(records) && records[i].ERTS != b.known.ERTS {
			i++
		}
		if i == len(records) {
			records = append(records, SlaveRecord{Slave: b.known.Slave, ERTS: b.known.ERTS, Latest: b.snapshot()})
		}
		records[i].Boots++
		if b.known.Failure != "" {
			records[i].Failures++
		}
	}
	return records
}

// sorted returns values in order, equal ones as they were. They are large, so that each is
// moved only once.
func sorted[T any](values []T, compare func(a, b *T) int) []T {
	order := make([]int, len(values))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Or(compare(&values[a], &values[b]), a-b) })
	result := make([]T, len(values))
	for i, from := range order {
		result[i] = values[from]
	}
	return result
}
