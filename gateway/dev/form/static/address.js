// Address look-ahead: shows the addresses of a postcode while it is being typed, in the same page.
// Without this script the form asks for the address on its own page; what is sent is the same.
const FULL_POSTCODE = /^[a-z]{1,2}\d[a-z\d]?\s*\d[a-z]{2}$/i
const WAIT_MS = 300

class AddressLookAhead {
  constructor (form) {
    this.form = form
    this.postcode = form.querySelector('#postcode')
    this.asked = ''
    this.group = this.makeGroup()
    this.said = document.createElement('div')
    this.said.className = 'govuk-visually-hidden'
    this.said.setAttribute('role', 'status')
    this.said.setAttribute('aria-live', 'polite')
    this.postcode.closest('.govuk-form-group').after(this.said)
    this.postcode.addEventListener('input', () => this.typed())
    this.typed()
  }

  makeGroup () {
    const group = document.createElement('div')
    group.className = 'govuk-form-group'
    const label = document.createElement('label')
    label.className = 'govuk-label'
    label.htmlFor = 'uprn'
    label.textContent = 'Which address is nearest to the toilet?'
    this.select = document.createElement('select')
    this.select.className = 'govuk-select'
    this.select.id = 'uprn'
    this.select.name = 'uprn'
    group.append(label, this.select)
    return group
  }

  typed () {
    clearTimeout(this.timer)
    const postcode = this.postcode.value.trim()
    if (postcode.replace(/\s/g, '').toUpperCase() === this.asked) return
    this.asked = ''
    this.group.remove()
    this.said.textContent = ''
    if (FULL_POSTCODE.test(postcode)) {
      this.timer = setTimeout(() => this.ask(postcode), WAIT_MS)
    }
  }

  async ask (postcode) {
    const key = postcode.replace(/\s/g, '').toUpperCase()
    this.asked = key
    const sent = new URLSearchParams({ csrf: this.form.elements.csrf.value, postcode })
    let found = { verdict: 'cannot_tell', addresses: [] }
    try {
      const answer = await fetch(this.form.dataset.addressLookahead, {
        method: 'POST', body: sent, signal: AbortSignal.timeout(8000)
      })
      if (answer.ok) found = await answer.json()
    } catch { /* The page works without: Continue asks the server again and says what is wrong. */ }
    if (this.asked === key) this.show(found)
  }

  show ({ verdict, addresses }) {
    if (addresses.length === 0) {
      this.said.textContent = verdict === 'not_found' ? 'No addresses found for this postcode' : ''
      return
    }
    const count = addresses.length === 1 ? '1 address found' : `${addresses.length} addresses found`
    this.select.replaceChildren(new Option(count, ''), ...addresses.map(one => new Option(one.address, one.uprn)))
    this.said.before(this.group)
    this.said.textContent = `${count}. Select one in the next field.`
  }
}

const form = document.querySelector('form[data-address-lookahead]')
if (form) new AddressLookAhead(form)
