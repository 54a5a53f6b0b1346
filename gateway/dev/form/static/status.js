// Live status: adds each change to the timeline as it happens and says it to screen readers.
// Without this script the page shows the same timeline and a link to load it again.
class LiveStatus {
  constructor (root) {
    this.moments = root.querySelector('[data-moments]')
    this.status = root.querySelector('[data-status]')
    this.live = root.querySelector('[data-live]')
    this.said = root.querySelector('[data-said]')
    this.source = new EventSource(root.dataset.statusStream)
    this.source.addEventListener('open', () => this.tell('This page updates by itself when the status changes.'))
    this.source.addEventListener('error', () => this.lost())
    this.source.addEventListener('moment', event => this.add(JSON.parse(event.data)))
    window.addEventListener('pagehide', () => this.source.close())
  }

  tell (text) {
    this.live.textContent = text
  }

  lost () {
    const closed = this.source.readyState === EventSource.CLOSED
    this.tell(closed ? 'Live updates have stopped. Load the page again to see if anything has changed.' : 'Connecting again…')
  }

  add (moment) {
    const line = document.createElement('li')
    line.className = 'moments__one'
    const title = document.createElement('h3')
    title.className = 'moments__title'
    title.textContent = moment.title
    const when = document.createElement('p')
    when.className = 'moments__when'
    const time = document.createElement('time')
    time.dateTime = moment.iso
    time.textContent = moment.when
    when.append(time)
    line.append(title, when)
    if (moment.text) {
      const text = document.createElement('p')
      text.className = 'moments__text'
      text.textContent = moment.text
      line.append(text)
    }
    this.moments.append(line)
    if (moment.status) {
      this.status.textContent = moment.status
      this.status.className = `govuk-tag govuk-tag--${moment.colour}`
    }
    this.said.textContent = `Update: ${moment.title}. ${moment.text}`
  }
}

for (const root of document.querySelectorAll('[data-status-stream]')) new LiveStatus(root)
