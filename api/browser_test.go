package api

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/tardigrade-recovery/tardigrade/internal/fleet"
)

// appears is how long is waited for what comes by itself, on a machine that is busy, too.
const appears = 3 * time.Minute

// browser starts Chromium, which ends with the test.
func browser(t *testing.T) context.Context {
	t.Helper()
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.NoSandbox, // which root cannot have
		chromedp.DisableGPU, chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.WSURLReadTimeout(appears))
	ctx, stop := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(stop)
	ctx, stop = chromedp.NewContext(ctx)
	t.Cleanup(stop)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start Chromium (.ci/install-test-deps.sh installs it): %v", err)
	}
	return ctx
}

// tab is a page of the dashboard that a person uses.
type tab struct {
	t   *testing.T
	ctx context.Context
	mu  sync.Mutex
	bad []string // what the browser complained about
}

// open opens the dashboard in a new tab.
func open(t *testing.T, browser context.Context, s *site) *tab {
	t.Helper()
	ctx, stop := chromedp.NewContext(browser)
	t.Cleanup(stop)
	p := &tab{t: t, ctx: ctx}
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	if err := chromedp.Listen(ctx, p.heard); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(ctx, log.Enable, cdp.Empty{}); err != nil {
		t.Fatal(err)
	}
	p.do("open the page", chromedp.Navigate(s.URL))
	return p
}

// heard takes note of exceptions, and of what the policy forbids.
func (p *tab) heard(event any) {
	said := ""
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		said = fmt.Sprintf("%+v", e.ExceptionDetails)
	case *log.EventEntryAdded:
		// Refusals, which the page shows, are errors to the browser.
		if e.Entry.Level == log.EntryLevelError && e.Entry.Source != log.EntrySourceNetwork {
			said = e.Entry.Text
		}
	}
	if said != "" {
		p.mu.Lock()
		p.bad = append(p.bad, said)
		p.mu.Unlock()
	}
}

func (p *tab) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.bad {
		p.t.Errorf("the browser complained: %s", b)
	}
}

func (p *tab) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, stop := context.WithTimeout(p.ctx, appears)
	defer stop()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.fail(what, err)
	}
}

func (p *tab) fail(what string, err error) {
	p.t.Helper()
	text, _ := chromedp.Run(p.ctx, chromedp.Evaluate[string]("document.body.innerText"))
	p.t.Fatalf("%s: %v; the page says:\n%s", what, err, text)
}

func (p *tab) click(label string) {
	p.t.Helper()
	p.do("click "+label, chromedp.Click(fmt.Sprintf(`//button[(@aria-label=%[1]q or not(@aria-label) and normalize-space()=%[1]q) and not(ancestor::dialog[not(@open)])]`, label), chromedp.NodeVisible))
}

func (p *tab) write(where, text string) {
	p.t.Helper()
	p.do("write "+text, chromedp.SendKeys(chromedp.CSS(where), text, chromedp.NodeVisible))
}

// await asks again and again. The page's policy forbids it to evaluate texts, so that it
// cannot do that by itself.
func (p *tab) await(what, condition string) {
	p.t.Helper()
	ctx, stop := context.WithTimeout(p.ctx, appears)
	defer stop()
	for {
		ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool](condition))
		if ok {
			return
		}
		if err != nil {
			p.fail("wait until "+what, err)
		}
		select {
		case <-ctx.Done():
			p.fail("wait until "+what, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// sees waits until an element has a text.
func (p *tab) sees(where, text string) {
	p.t.Helper()
	p.await(fmt.Sprintf("%s says %q", where, text), fmt.Sprintf(`[...document.querySelectorAll(%q)].some((e) => e.textContent.includes(%q))`, where, text))
}

// gone waits until no such element can be seen.
func (p *tab) gone(where string) {
	p.t.Helper()
	p.await("there is no "+where, fmt.Sprintf(`[...document.querySelectorAll(%q)].every((e) => !e.checkVisibility())`, where))
}

// What a person does on the dashboard, in a real browser.
func TestDashboard(t *testing.T) {
	b := browser(t)
	t.Run("approve", func(t *testing.T) {
		s := newSite(t)
		p := open(t, b, s)
		defer p.close()
		p.sees("#hosts", realHost)
		p.sees("#hosts .badge", "simulated")
		for _, width := range []int64{1280, 600} {
			p.do("resize", chromedp.EmulateViewport(width, 860))
			p.await("what waits for a decision stands above the rest", `document.querySelector("#waiting-title").getBoundingClientRect().top < Math.min(...["#hosts", "#recommendations-title"].map((s) => document.querySelector(s).getBoundingClientRect().top))`)
		}
		p.click("Approve recycle on " + simHost)
		p.write("#confirm-note", "seen it")
		p.click("Approve")
		p.gone("#confirm-dialog")
		if r := s.fake.rec(recPending); r.State != fleet.RecommendationExecuting || r.Note != "seen it" {
			t.Errorf("%s is %s with the note %q", r.ID, r.State, r.Note)
		}
		p.sees("#recommendations .badge", "executing")
	})
	t.Run("a refusal says why", func(t *testing.T) {
		s := newSite(t)
		p := open(t, b, s)
		defer p.close()
		p.click("Approve recycle on " + realHost)
		p.click("Approve")
		p.sees("#confirm-error", "the freeze switch is on")
		p.click("Not now")
		p.gone("#confirm-dialog")
		if r := s.fake.rec(recGuard); r.State != fleet.RecommendationPending {
			t.Errorf("%s is %s", r.ID, r.State)
		}
	})
	t.Run("what happens is shown at once, and can be stopped", func(t *testing.T) {
		s := newSite(t)
		p := open(t, b, s)
		defer p.close()
		p.sees("#link", "live")
		e := s.fake.execs[0]
		e.ID, e.State, e.Ended, e.Outcome, e.Bundle = "01J9RUNS", fleet.ExecutionRecycling, time.Time{}, "", ""
		func() {
			defer s.fake.lock()()
			s.fake.execs = append(s.fake.execs, e)
		}()
		s.fake.emit("execution", e.ID, e)
		p.sees("#executions .badge", "recycling")
		p.click("Stop recycle on " + simHost)
		p.click("Stop")
		p.gone("#confirm-dialog")
		p.sees("#executions .badge", "cancelled")
		p.sees("#executions p", "cancelled by local")
		p.gone(fmt.Sprintf(`button[aria-label="Stop recycle on %s"]`, simHost))
	})
	t.Run("freeze and lift", func(t *testing.T) {
		s := newSite(t)
		p := open(t, b, s)
		defer p.close()
		p.sees("#link", "live")
		p.click("Freeze the fleet")
		p.click("Freeze") // without a reason the browser does not send it
		p.write("#confirm-note", "the network is down")
		p.click("Freeze")
		p.gone("#confirm-dialog")
		p.sees("#frozen", "the network is down")
		if f, _ := s.fake.Freezes(t.Context()); len(f) != 1 || f[0].Reason != "the network is down" || f[0].Host != "" || f[0].FaultDomain != "" {
			t.Fatalf("frozen: %+v", f)
		}
		// Another person's freeze of a host.
		f := fleet.Freeze{ID: "01J3OTHER", Host: simHost, Simulated: true, By: "ann", Reason: "I look at it", Since: epoch}
		func() {
			defer s.fake.lock()()
			s.fake.frozen = append(s.fake.frozen, f)
		}()
		s.fake.emit("freeze", f.ID, f)
		p.sees("#frozen", "I look at it")
		p.click("Lift the freeze of the whole fleet")
		p.click("Lift")
		p.gone("#confirm-dialog")
		p.gone(`#frozen [aria-label="frozen: the whole fleet"]`)
		p.sees("#frozen", "I look at it")
		if f, _ := s.fake.Freezes(t.Context()); len(f) != 1 || f[0].ID != "01J3OTHER" {
			t.Errorf("frozen: %+v", f)
		}
	})
	t.Run("a host that falls silent, is cordoned, and removed", func(t *testing.T) {
		s := newSite(t)
		p := open(t, b, s)
		defer p.close()
		p.sees("#link", "live")
		silent := prediction(simHost, true)
		silent.State = fleet.PredictionStale
		s.fake.emit("prediction", simHost, silent)
		p.sees("#hosts .badge", "silent since")
		p.sees("#summary .failing", "silent")
		s.fake.emit("cordon", simHost, fleet.Cordon{Host: simHost, By: "ann", Reason: "new memory"})
		p.sees("#hosts .badge", "cordoned")
		s.fake.emit("cordon", simHost, fleet.Cordon{Host: simHost, Lifted: epoch})
		p.await("it is cordoned no more", `![...document.querySelectorAll("#hosts .badge")].some((e) => e.textContent === "cordoned")`)
		s.fake.emit("host.removed", simHost, fleet.Host{ID: simHost})
		p.gone("#host-" + simHost)
	})
	t.Run("act on a host", func(t *testing.T) {
		s := newSite(t)
		p := open(t, b, s)
		defer p.close()
		p.click(simHost)
		p.sees("#host-facts", "libvirtd.service grows by 3 MiB/s")
		p.sees("#chart .now", "now 75 %")
		p.do("choose", chromedp.SetValue(chromedp.CSS("#act-action"), "hand-over"))
		p.write("#act-reason", "it smells")
		p.click("Request")
		p.gone("#host-dialog")
		p.sees("#executions", "hand-over on "+simHost)
	})
	t.Run("a shadow is compared", func(t *testing.T) {
		s := newSite(t)
		p := open(t, b, s)
		defer p.close()
		p.sees("#models h3", modelID)
		p.sees("#models td", "-0.100")
		p.sees("#models th", "Foreseen of 2 incidents")
		p.sees("#models p", "too early")
		p.gone("#models .badge.open")
		func() {
			defer s.fake.lock()()
			s.fake.promotable = true
		}()
		s.fake.emit("model", modelID, fakeModel("shadow"))
		p.sees("#models .badge.open", "to promote")
	})
	t.Run("sign in", func(t *testing.T) {
		s := newSite(t, withTokens)
		p := open(t, b, s)
		defer p.close()
		p.sees("#token-text", "asks for a token")
		p.write("#token", "wrong")
		p.click("Sign in")
		p.sees("#token-text", "does not know this token")
		p.write("#token", string(RoleViewer))
		p.click("Sign in")
		p.sees("#hosts", realHost)
		p.click("Approve recycle on " + simHost)
		p.click("Approve")
		p.sees("#confirm-error", "approver")
		if r := s.fake.rec(recPending); r.State != fleet.RecommendationPending {
			t.Errorf("a viewer made it %s", r.State)
		}
	})
	t.Run("what comes from outside is text", func(t *testing.T) {
		s := newSite(t)
		const script = `<img src=x onerror="document.title='hacked'"><script>document.title='hacked'</script>`
		s.fake.hosts[0].Prediction.Evidence, s.fake.hosts[0].Prediction.Culprit = []string{script}, script
		s.fake.recs[0].Reason = script
		p := open(t, b, s)
		defer p.close()
		p.sees("#hosts p", script)
		p.sees("#waiting p", script)
		p.await("no text became markup", `document.querySelector("main img, main script") === null && !document.title.includes("hacked")`)
	})
}
