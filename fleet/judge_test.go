package fleet

import (
	"testing"
	"time"

	"eboot"
)

func TestJudge(t *testing.T) {
	const deadline, minHealthy = time.Minute, 30 * time.Second
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	type boots []eboot.Boot
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	loading := func(began time.Duration) eboot.Boot {
		return eboot.Boot{Began: ago(began), Latest: ago(began), Phase: eboot.BootLoading}
	}
	up := func(began, loaded time.Duration) eboot.Boot {
		return eboot.Boot{Began: ago(began), Latest: ago(loaded), Loaded: ago(loaded), Phase: eboot.BootStarted}
	}
	failing := func(b eboot.Boot, at time.Duration) eboot.Boot {
		b.Failure, b.FailedAt, b.Phase = "the node was gone", ago(at), eboot.BootFailed
		return b
	}
	quiet := loading(time.Hour)
	quiet.Phase = eboot.BootQuiet
	quiet.Latest = ago(time.Second)
	crash := failing(loading(10*time.Minute), 9*time.Minute)
	healthy := up(5*time.Minute, 4*time.Minute)
	for _, tc := range []struct {
		name  string
		boots boots
		want  Verdict
	}{
		{"none", nil, Verdict{}},
		{"on its way", boots{loading(time.Second)}, Verdict{}},
		{"at the deadline", boots{loading(deadline)}, Verdict{}},
		{"too late", boots{loading(deadline + 1)}, Verdict{State: Failed, Failures: 1}},
		{"up too late", boots{up(10*time.Minute, 9*time.Minute-1)}, Verdict{State: Failed, Failures: 1}},
		{"just up", boots{up(40*time.Second, minHealthy-1)}, Verdict{}},
		{"healthy", boots{up(40*time.Second, minHealthy)}, Verdict{State: Healthy}},
		{"crashed in mid-boot", boots{failing(loading(10*time.Second), time.Second)}, Verdict{State: Failed, Failures: 1}},
		{"crashed when up", boots{failing(up(10*time.Minute, 9*time.Minute), 9*time.Minute-minHealthy+1)}, Verdict{State: Failed, Failures: 1}},
		{"crashed later", boots{failing(up(10*time.Minute, 9*time.Minute), 9*time.Minute-minHealthy)}, Verdict{State: Healthy}},
		{"taken over, with nothing to say", boots{quiet}, Verdict{State: Healthy}},
		{"failed, then on its way", boots{crash, loading(time.Second)}, Verdict{Failures: 1}},
		{"failed, then healthy", boots{crash, healthy}, Verdict{State: Healthy, Failures: 1}},
		{"healthy, then failed", boots{healthy, failing(loading(time.Minute), time.Second)}, Verdict{State: Failed, Failures: 1}},
		{"failed twice", boots{crash, crash}, Verdict{State: Failed, Failures: 2}},
		{"loops", boots{crash, crash, crash}, Verdict{State: Failed, Failures: 3, Looping: true}},
		{"loops, and boots", boots{crash, crash, crash, loading(time.Second)}, Verdict{Failures: 3, Looping: true}},
		{"looped", boots{crash, crash, crash, healthy}, Verdict{State: Healthy, Failures: 3}},
		{"was healthy in between", boots{crash, crash, healthy, failing(loading(time.Minute), time.Second)}, Verdict{State: Failed, Failures: 3}},
		{"was up in between, not for long", boots{crash, crash, up(5*time.Minute, 65*time.Second+minHealthy-10*time.Second), failing(loading(65*time.Second), time.Second)},
			Verdict{State: Failed, Failures: 4, Looping: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := Judge(tc.boots, now, deadline, minHealthy); got != tc.want {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
}
