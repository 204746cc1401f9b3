package agent

import (
	"cmp"
	"context"
	"net/netip"
	"slices"

	"eboot"
	"eboot/api"
)

// Slaves returns a row for each slave that was seen to boot, whichever server it booted from, and
// for each entry of the whitelist of which none was, by address. The phases of a boot that is
// over are left out: of ten thousand slaves they would be half of the answer.
func (a *Agent) Slaves() []eboot.SlaveStatus {
	state := a.view.State()
	records := a.fleet.Slaves()
	rows := make([]eboot.SlaveStatus, 0, len(records)+state.WhitelistSize())
	refused := a.refusals()
	seen, known := map[netip.Prefix]bool{}, map[slaveKey]bool{}
	enter := func(row eboot.SlaveStatus) {
		if entry, ok := state.Lookup(row.Slave); ok {
			seen[entry.Prefix] = true
			row.Prefix, row.Channel, row.Labels = entry.Prefix, entry.Channel, entry.Labels
			if next, ok := state.Target(entry, row.Slave, row.ERTS); ok {
				row.Next = next.Ref()
			} else if r, ok := refused[slaveKey{row.Slave, row.ERTS}]; ok {
				row.Refusal = r.Text
			}
		}
		rows = append(rows, row)
	}
	for i := range records {
		r := &records[i]
		if cured := r.Latest.Cured; cured != nil && !r.Latest.Loaded.IsZero() {
			brief := *cured // what is shared is never changed
			brief.Phases = nil
			r.Latest.Cured = &brief
		}
		enter(eboot.SlaveStatus{Slave: r.Slave, ERTS: r.ERTS, Boot: &r.Latest, LastSeen: r.Latest.Latest, Boots: r.Boots, Failures: r.Failures})
		known[slaveKey{r.Slave, r.ERTS}] = true
	}
	for key, event := range refused {
		if !known[key] {
			enter(eboot.SlaveStatus{Slave: key.slave, ERTS: key.erts, LastSeen: event.At})
		}
	}
	for entry := range state.Whitelist() {
		if !seen[entry.Prefix] {
			rows = append(rows, eboot.SlaveStatus{Prefix: entry.Prefix, Channel: entry.Channel, Labels: entry.Labels})
		}
	}
	slices.SortFunc(rows, func(a, b eboot.SlaveStatus) int {
		return cmp.Or(place(a).Compare(place(b)), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), cmp.Compare(a.ERTS, b.ERTS))
	})
	return rows
}

// place is where a row stands.
func place(row eboot.SlaveStatus) netip.Addr {
	if row.Slave.IsValid() {
		return row.Slave
	}
	return row.Prefix.Addr()
}

// refusals are the latest events of slaves for whose ERTS version there was no bundle.
func (a *Agent) refusals() map[slaveKey]eboot.Event {
	found := map[slaveKey]eboot.Event{}
	for _, e := range a.fleet.Events() {
		if e.Kind == eboot.EventSlaveRefused {
			found[slaveKey{e.Slave, e.ERTS}] = e
		}
	}
	return found
}

// PlanRollout says which slaves a rollout would bring what, by what is known of them now.
func (a *Agent) PlanRollout(_ context.Context, channel string, s api.RolloutStart) (api.RolloutPlan, error) {
	plan := api.RolloutPlan{Channel: channel, Bundle: s.Bundle, Moves: []api.PlannedMove{}, WithoutBundle: []api.PlannedGap{}}
	if err := eboot.CheckName("channel", channel); err != nil {
		return plan, err
	}
	if err := s.Check(); err != nil {
		return plan, err
	}
	if err := a.checkRollout(channel); err != nil {
		return plan, err
	}
	state := a.view.State()
	targets := state.BundlesOf(s.Bundle)
	if len(targets) == 0 {
		return plan, noBundle(s.Bundle)
	}
	ch, _ := state.Channel(channel)
	moved := map[string]bool{}
	for _, b := range targets {
		if from := ch.Bundles[b.ERTS]; from != s.Bundle {
			moved[b.ERTS] = true
			plan.Moves = append(plan.Moves, api.PlannedMove{ERTS: b.ERTS, From: from, To: s.Bundle})
		}
	}
	trial := &eboot.Rollout{Channel: channel, Target: s.Bundle, RolloutSpec: s.RolloutSpec}
	for _, stage := range s.Stages {
		plan.Stages = append(plan.Stages, api.PlannedStage{Stage: stage, Slaves: []netip.Addr{}})
	}
	gaps := map[string]*api.PlannedGap{}
	for _, row := range a.Slaves() {
		if row.Channel != channel {
			continue
		}
		if !row.Slave.IsValid() {
			if row.Prefix.IsSingleIP() {
				plan.Unseen++
			}
			continue
		}
		_, served := ch.Bundles[row.ERTS]
		switch {
		case moved[row.ERTS]:
			a.planSlave(&plan, trial, row)
		case !served:
			gap := gaps[row.ERTS]
			if gap == nil {
				gap = &api.PlannedGap{ERTS: row.ERTS}
				gaps[row.ERTS] = gap
			}
			gap.Count++
			gap.Slaves = listSlave(gap.Slaves, row.Slave)
		}
	}
	for _, gap := range gaps {
		plan.WithoutBundle = append(plan.WithoutBundle, *gap)
	}
	slices.SortFunc(plan.WithoutBundle, func(a, b api.PlannedGap) int { return cmp.Compare(a.ERTS, b.ERTS) })
	return plan, nil
}

func (a *Agent) planSlave(plan *api.RolloutPlan, trial *eboot.Rollout, row eboot.SlaveStatus) {
	i, ok := trial.StageOf(row.Slave, row.Labels)
	if !ok {
		plan.Unselected++
		return
	}
	stage := &plan.Stages[i]
	stage.Count++
	stage.Slaves = listSlave(stage.Slaves, row.Slave)
	if row.Boot != nil && a.restartable(*row.Boot) {
		stage.Restartable++
	} else {
		plan.Unreachable++
	}
}

func listSlave(list []netip.Addr, slave netip.Addr) []netip.Addr {
	if len(list) < api.MaxPlannedSlaves {
		return append(list, slave)
	}
	return list
}
